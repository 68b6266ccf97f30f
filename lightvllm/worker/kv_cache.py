"""The paged KV cache: how large it may be, said before it is made, and the tensors themselves."""

from dataclasses import dataclass

import numpy as np
import psutil
import torch

from lightvllm.attention.paged import LayerCache
from lightvllm.config import EngineConfig
from lightvllm.kernels.reference import SCALE_BYTES
from lightvllm.model_config import ModelConfig

GIB = 1 << 30
# On a CPU the cache shares memory with everything else that runs, so without an order it stays modest.
CPU_DEFAULT_BYTES = 4 * GIB
CPU_DEFAULT_SHARE = 0.4


@dataclass(frozen=True)
class KVCachePlan:
    """How many blocks the cache has, of which type, how long a request may be, and where the numbers come from.

    `head_size`: the elements that hold a key or a value of one head, of int8 with its scale.
    """

    num_blocks: int
    block_size: int
    block_bytes: int
    dtype: torch.dtype
    head_size: int
    max_model_len: int
    reason: str

    def __str__(self) -> str:
        size, dtype = _bytes(self.num_blocks * self.block_bytes), str(self.dtype).removeprefix("torch.")
        return (
            f"KV cache: {self.num_blocks} blocks of {self.block_size} tokens in {dtype}, {size} ({self.reason}); "
            f"longest request {self.max_model_len} tokens"
        )


def plan_kv_cache(
    config: EngineConfig, model: ModelConfig, dtype: torch.dtype, device: torch.device, weight_bytes: int
) -> KVCachePlan:
    """Size the cache from the budget that was given, or from the memory that is free.

    Raises:
        ValueError: `max_model_len` was asked for but a single request of that length does not fit.
    """
    is_int8 = config.kv_cache_dtype == "int8"
    cache_dtype = torch.int8 if is_int8 else dtype
    head_size = model.head_dim + (SCALE_BYTES if is_int8 else 0)
    token_bytes = 2 * model.num_layers * model.num_kv_heads * head_size * cache_dtype.itemsize
    block_bytes = token_bytes * config.block_size
    max_model_len = config.max_model_len or model.max_position_embeddings
    if max_model_len > model.longest:
        raise ValueError(
            f"max_model_len: {max_model_len} tokens are more than the model's {model.longest:.0f} positions; lower it, "
            f"or stretch the positions with hf_overrides={{'rope_scaling': ...}}"
        )
    longest = -(-max_model_len // config.block_size)
    budget, reason = _budget(config, model, dtype, device, weight_bytes)
    num_blocks = budget // block_bytes
    if config.kv_cache_memory_bytes is None and num_blocks > config.max_num_seqs * longest:
        num_blocks, reason = config.max_num_seqs * longest, "max_num_seqs requests of full length"
    if num_blocks < longest:
        if config.max_model_len is not None or num_blocks < 1:
            raise ValueError(
                f"max_model_len: one request of {max_model_len} tokens needs {_bytes(longest * block_bytes)} of "
                f"KV cache, but there is {_bytes(budget)} ({reason}), enough for {num_blocks * config.block_size}; "
                f"lower max_model_len or raise kv_cache_memory_bytes"
            )
        max_model_len = num_blocks * config.block_size
    return KVCachePlan(num_blocks, config.block_size, block_bytes, cache_dtype, head_size, max_model_len, reason)


def _budget(
    config: EngineConfig, model: ModelConfig, dtype: torch.dtype, device: torch.device, weight_bytes: int
) -> tuple[int, str]:
    available = psutil.virtual_memory().available if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    if config.kv_cache_memory_bytes is not None:
        if config.kv_cache_memory_bytes > available:
            raise ValueError(
                f"kv_cache_memory_bytes: {config.kv_cache_memory_bytes} ({_bytes(config.kv_cache_memory_bytes)}) is "
                f"more than the {_bytes(available)} of memory available"
            )
        return config.kv_cache_memory_bytes, "kv_cache_memory_bytes"
    if device.type == "cpu":
        share = int(available * CPU_DEFAULT_SHARE)
        if share < CPU_DEFAULT_BYTES:
            return share, f"{CPU_DEFAULT_SHARE:.0%} of the {_bytes(available)} available"
        return CPU_DEFAULT_BYTES, "the default on a CPU"
    free, total = torch.cuda.mem_get_info(device)
    activations = _activation_bytes(config, model, dtype)
    reserved = int(total * (1 - config.gpu_memory_utilization))
    # `free` is measured with the weights loaded already.
    return max(0, free - reserved - activations), (
        f"{config.gpu_memory_utilization:.0%} of {_bytes(total)}, less what is in use ({_bytes(weight_bytes)} of it "
        f"weights) and {_bytes(activations)} for activations"
    )


def _activation_bytes(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """An upper bound of what a step holds beside weights and cache: one layer's tensors, and float32 logits."""
    widths = 6 * model.hidden_size + 4 * model.intermediate_size
    widths += 4 * (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    tokens = config.max_num_batched_tokens * widths * dtype.itemsize
    return tokens + 4 * config.max_num_seqs * model.vocab_size * 4 + GIB // 2


def allocate_kv_cache(
    plan: KVCachePlan, model: ModelConfig, device: torch.device, num_spare_blocks: int = 0
) -> list[LayerCache]:
    """The zeroed cache, one entry a layer, with some blocks behind those of the plan.

    On a CPU the operating system hands out the pages as blocks are first used, so a large cache costs nothing at start.
    """
    shape = (plan.num_blocks + num_spare_blocks, plan.block_size, model.num_kv_heads, plan.head_size)

    def zeros() -> torch.Tensor:
        if device.type == "cpu":
            size = int(np.prod(shape)) * plan.dtype.itemsize
            return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(plan.dtype).view(shape)
        return torch.zeros(shape, dtype=plan.dtype, device=device)

    return [LayerCache(zeros(), zeros()) for _ in range(model.num_layers)]


def _bytes(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.3g} GiB"
