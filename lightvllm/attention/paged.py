"""What every paged backend works on: a cache cut into blocks, and where each of the step's requests has its own.

PagedAttention: Kwon et al., 2023, https://arxiv.org/abs/2309.06180.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lightvllm import kernels
from lightvllm.attention.base import AttentionLayer


@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values, each [num_blocks, block_size, num_kv_heads, head_dim].

    In int8 a head has four bytes more, see `lightvllm.kernels.reference.round_heads`.
    """

    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class PagedBatch:
    """The step's requests, their tokens laid end to end.

    Attributes:
        query_lens: [num_requests] int, tokens computed in this step.
        seq_lens: [num_requests] int, tokens in the cache after it: the query attends to all of these before itself.
        block_table: [num_requests, max_blocks] int, the block that holds tokens [i * block_size, (i + 1) * block_size).
            Entries past a request's last block are any valid block.
        slot_mapping: [num_tokens] int64, where each token's key and value go: block * block_size + offset.
    """

    query_lens: np.ndarray
    seq_lens: np.ndarray
    block_table: np.ndarray
    slot_mapping: np.ndarray


@dataclass(frozen=True)
class DeviceBatch:
    """The same for kernels on a GPU: requests that compute one token (decodes) come first, then the others (chunks).

    Its tensors may be a captured graph's own, which are filled anew for every step: kernels read lengths on the device,
    and a launch may depend on nothing but the numbers and shapes here. A graph's batch is padded with decodes of one
    token in a block that belongs to nobody.

    Attributes:
        num_decodes: the first so many requests, and tokens.
        max_query_len: of the chunks; 0 where there are none.
        max_seq_len: of all requests; in a graph the longest that it serves.
        query_starts: [num_requests + 1] int32, where each request's tokens begin; the last is num_tokens.
        seq_lens: [num_requests] int32, tokens in the cache after this step.
        block_table: [num_requests, max_blocks] int32, see `PagedBatch`; rows may lie further apart than they are long.
        slots: [num_tokens] int64, where each token's key and value go: block * block_size + offset.
    """

    num_decodes: int
    max_query_len: int
    max_seq_len: int
    query_starts: Tensor
    seq_lens: Tensor
    block_table: Tensor
    slots: Tensor


class DeviceAttention(ABC):
    """Attention of one step on a GPU, which needs nothing from the host. A backend implements `_attend`.

    `fuses_lone_decodes`: a decode that is alone may go through one kernel for all, whose bits are its own.
    `is_capturable`: a decode costs what its requests' own lengths cost, also where the batch says that they may be as
    long as a graph serves. Others run without graphs.
    """

    fuses_lone_decodes: ClassVar[bool] = False
    is_capturable: ClassVar[bool] = True

    def __init__(self, cache: list[LayerCache], batch: DeviceBatch) -> None:
        self.cache = cache
        self.batch = batch

    def attend(self, layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `lightvllm.attention.base.Attention.attend`."""
        cache = self.cache[layer.index]
        kernels.write_kv(key, value, cache.key, cache.value, self.batch.slots)
        return self._attend(layer, cache, query).flatten(1)

    def attend_product(
        self,
        layer: AttentionLayer,
        qkv: Tensor,
        query_weight: Tensor | None,
        key_weight: Tensor | None,
        eps: float,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        """The same from the product of queries, keys and values on, see `kernels.rotary_qkv`.

        A decode that is alone can take one kernel for all: it sees no token that another one computes in the same step.
        That kernel reads lengths, block table and older keys before the kernel ahead of it has ended, which must have
        written none of them.
        """
        cache, heads = self.cache[layer.index], (layer.num_heads, layer.num_kv_heads)
        is_alone = len(qkv) == self.batch.num_decodes == 1
        if self.fuses_lone_decodes and is_alone and kernels.has_few_rows_attention(cache.key, *heads):
            return kernels.few_rows_attention(
                qkv, query_weight, key_weight, eps, cos, sin, cache.key, cache.value, self.batch.slots,
                self.batch.block_table, self.batch.seq_lens, *heads, layer.scale, layer.sliding_window or 0
            )  # fmt: skip
        rotated = kernels.rotary_qkv(qkv, query_weight, key_weight, eps, cos, sin, *heads)
        return self.attend(layer, *rotated.split([*heads, layer.num_kv_heads], dim=1))

    @abstractmethod
    def _attend(self, layer: AttentionLayer, cache: LayerCache, query: Tensor) -> Tensor:
        """[num_tokens, num_heads, head_dim] -> the same shape; keys and values are in the cache already."""


class PagedAttention(ABC):
    """Attention of one step against the paged cache. A backend implements `_attend`.

    All keys and values of a layer are written before any is read, so requests of one step may share blocks that the
    step itself fills.
    """

    def __init__(self, cache: list[LayerCache], batch: PagedBatch) -> None:
        self.cache = cache
        self.batch = batch
        self.device = cache[0].key.device
        self.block_size = cache[0].key.shape[1]
        self.slots = torch.from_numpy(batch.slot_mapping).to(self.device)

    def attend(self, layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `lightvllm.attention.base.Attention.attend`."""
        cache = self.cache[layer.index]
        kernels.write_kv(key, value, cache.key, cache.value, self.slots)
        return self._attend(layer, cache, query, key, value).flatten(1)

    @abstractmethod
    def _attend(self, layer: AttentionLayer, cache: LayerCache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[num_tokens, num_heads, head_dim] -> the same shape; keys and values are in the cache already."""
