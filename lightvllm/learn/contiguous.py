"""Generating without an engine: the whole sequence again for every token, or with one contiguous KV cache.

The same models as the engine's, which hand their queries, keys and values to whatever `Attention` comes with the step.
It is the one module of `lightvllm.learn` that imports torch.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lightvllm import kernels
from lightvllm.attention.base import Attention, AttentionLayer
from lightvllm.attention.dense import DenseAttention
from lightvllm.kernels.reference import visible
from lightvllm.model_config import ModelConfig
from lightvllm.models.decoder import CausalLM


class ContiguousAttention:
    """Attention of one sequence, whose keys and values lie one after the other in memory reserved for all of them.

    Args:
        max_len: tokens there is room for, used or not.

    Attributes:
        keys, values: [num_layers, max_len, num_kv_heads, head_dim], of which the first `num_tokens` tokens are filled.
    """

    def __init__(self, config: ModelConfig, max_len: int, dtype: torch.dtype) -> None:
        shape = (config.num_layers, max_len, config.num_kv_heads, config.head_dim)
        self.max_len = max_len
        self.keys = torch.empty(shape, dtype=dtype)
        self.values = torch.empty(shape, dtype=dtype)
        self._num_tokens = [0] * config.num_layers

    @property
    def num_tokens(self) -> int:
        """Tokens that all layers have the keys and values of."""
        return self._num_tokens[-1]

    def attend(self, layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `lightvllm.attention.base.Attention.attend`. The tokens are the sequence's next ones.

        Raises:
            ValueError: there is no room for them.
        """
        start, end = self._num_tokens[layer.index], self._num_tokens[layer.index] + len(query)
        if end > self.max_len:
            raise ValueError(f"max_len: {end} tokens do not fit in the {self.max_len} reserved")
        self.keys[layer.index, start:end] = key
        self.values[layer.index, start:end] = value
        self._num_tokens[layer.index] = end
        window = layer.sliding_window or 0
        sees_all_before = not window or end <= window
        is_causal = start == 0 and sees_all_before
        needs_mask = not is_causal and not (len(query) == 1 and sees_all_before)
        output = F.scaled_dot_product_attention(
            query.transpose(0, 1).unsqueeze(0),
            self.keys[layer.index, :end].transpose(0, 1).unsqueeze(0),
            self.values[layer.index, :end].transpose(0, 1).unsqueeze(0),
            attn_mask=visible(len(query), end, window, query.device) if needs_mask else None,
            is_causal=is_causal,
            scale=layer.scale,
            enable_gqa=layer.num_heads != layer.num_kv_heads,
        )  # [1, num_heads, num_tokens, head_dim]
        return output[0].transpose(0, 1).flatten(1)


@torch.inference_mode()
def naive_tokens(model: CausalLM, prompt: list[int], num_tokens: int) -> Iterator[int]:
    """Generate greedily, and for each token compute the whole sequence from the start.

    Args:
        model: such as `LightvLLM.from_pretrained(...).model`.
    """
    token_ids = list(prompt)
    for _ in range(num_tokens):
        token = _next_token(model, token_ids, 0, len(prompt), DenseAttention(1))
        token_ids.append(token)
        yield token


@torch.inference_mode()
def cached_tokens(model: CausalLM, prompt: list[int], num_tokens: int, attention: ContiguousAttention) -> Iterator[int]:
    """Generate greedily, and compute each token once: of those before it the cache has keys and values.

    Args:
        attention: with an empty cache.
    """
    new = list(prompt)
    for _ in range(num_tokens):
        token = _next_token(model, new, attention.num_tokens, len(prompt), attention)
        new = [token]
        yield token


def _next_token(model: CausalLM, token_ids: list[int], start: int, prompt_len: int, attention: Attention) -> int:
    """The most likely token after these, the first of which is the sequence's token `start`."""
    positions = torch.arange(start, start + len(token_ids))
    lengths = (positions + 1).clamp(min=prompt_len)  # as in the engine, see `StepBatch.lengths`
    hidden = model(torch.tensor(token_ids), positions, attention, lengths)
    return int(kernels.most_likely(model.compute_logits(hidden[-1:])))
