"""The paged KV cache: how large it may be, said before it is made, and the tensors themselves."""

from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch

from lightvllm.attention.paged import LayerCache
from lightvllm.config import EngineConfig
from lightvllm.kernels.reference import SCALE_BYTES
from lightvllm.model_config import ModelConfig
from lightvllm.worker.gpu_memory import MemoryUse, format_bytes

GIB = 1 << 30
# On a CPU the cache shares memory with everything else that runs, so without an order it stays modest.
CPU_DEFAULT_BYTES = 4 * GIB
CPU_DEFAULT_SHARE = 0.4


@dataclass(frozen=True)
class KVCachePlan:
    """How many blocks the cache has, of which type, how long a request may be, and where the numbers come from.

    `head_size`: the elements that hold a key or a value of one head, of int8 with its scale.
    `memory`: what else a GPU's memory goes to, where that was measured.
    """

    num_blocks: int
    block_size: int
    block_bytes: int
    dtype: torch.dtype
    head_size: int
    max_model_len: int
    reason: str
    memory: MemoryUse | None = None

    def __str__(self) -> str:
        size, dtype = format_bytes(self.num_blocks * self.block_bytes), str(self.dtype).removeprefix("torch.")
        text = (
            f"KV cache: {self.num_blocks} blocks of {self.block_size} tokens in {dtype}, {size} ({self.reason}); "
            f"longest request {self.max_model_len} tokens"
        )
        if self.memory is None:
            return text
        cache = self.num_blocks * self.block_bytes
        return f"{text}; memory, {format_bytes(self.memory.total)}: {self.memory.describe(cache)}"


def plan_kv_cache(
    config: EngineConfig,
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    memory: MemoryUse | None = None,
) -> KVCachePlan:
    """Size the cache from the budget that was given, or from the memory that is free.

    Args:
        memory: of a GPU, measured; not needed with `kv_cache_memory_bytes`.

    Raises:
        ValueError: `max_model_len` was asked for but a single request of that length does not fit, or nothing does.
    """
    layout = plan_of_blocks(1, config, model, dtype)
    block_bytes = layout.block_bytes
    max_model_len = config.max_model_len or model.max_position_embeddings
    if max_model_len > model.longest:
        raise ValueError(
            f"max_model_len: {max_model_len} tokens are more than the model's {model.longest:.0f} positions; lower it, "
            f"or stretch the positions with hf_overrides={{'rope_scaling': ...}}"
        )
    longest = -(-max_model_len // config.block_size)
    budget, reason = _budget(config, device, memory)
    num_blocks = budget // block_bytes
    if config.kv_cache_memory_bytes is None and num_blocks > config.max_num_seqs * longest:
        num_blocks, reason = config.max_num_seqs * longest, "max_num_seqs requests of full length"
    if num_blocks < longest:
        fitting = num_blocks * config.block_size
        if memory is not None and num_blocks < 1:
            raise ValueError(
                f"gpu_memory_utilization: {config.gpu_memory_utilization} of {format_bytes(memory.total)} leaves no "
                f"room for a KV cache ({memory.describe(0)}); raise it, lower max_num_batched_tokens or max_num_seqs, "
                f"round the weights (quantization), or end what else uses the GPU"
            )
        if config.max_model_len is not None or num_blocks < 1:
            more = "kv_cache_memory_bytes" if memory is None else "gpu_memory_utilization"
            raise ValueError(
                f"max_model_len: one request of {max_model_len} tokens needs {format_bytes(longest * block_bytes)} of "
                f"KV cache, but there is {format_bytes(budget)} ({reason}), enough for {fitting}; "
                f"lower max_model_len or raise {more}"
            )
        max_model_len = fitting
    return replace(layout, num_blocks=num_blocks, max_model_len=max_model_len, reason=reason, memory=memory)


def plan_of_blocks(num_blocks: int, config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> KVCachePlan:
    """A cache of so many blocks, whatever memory there is; for one request that fills it."""
    is_int8 = config.kv_cache_dtype == "int8"
    cache_dtype = torch.int8 if is_int8 else dtype
    head_size = model.head_dim + (SCALE_BYTES if is_int8 else 0)
    token_bytes = 2 * model.num_layers * model.num_kv_heads * head_size * cache_dtype.itemsize
    return KVCachePlan(
        num_blocks=num_blocks,
        block_size=config.block_size,
        block_bytes=token_bytes * config.block_size,
        dtype=cache_dtype,
        head_size=head_size,
        max_model_len=num_blocks * config.block_size,
        reason="as ordered",
    )


def _budget(config: EngineConfig, device: torch.device, memory: MemoryUse | None) -> tuple[int, str]:
    if memory is not None and config.kv_cache_memory_bytes is None:
        share = int(memory.total * config.gpu_memory_utilization)
        return max(0, share - memory.used), (
            f"{config.gpu_memory_utilization:.0%} of {format_bytes(memory.total)}, less what else is used"
        )
    available = psutil.virtual_memory().available if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    if config.kv_cache_memory_bytes is not None:
        if config.kv_cache_memory_bytes > available:
            raise ValueError(
                f"kv_cache_memory_bytes: {config.kv_cache_memory_bytes} ({format_bytes(config.kv_cache_memory_bytes)}) "
                f"is more than the {format_bytes(available)} of memory available"
            )
        return config.kv_cache_memory_bytes, "kv_cache_memory_bytes"
    assert device.type == "cpu", "a GPU's memory is measured"
    share = int(available * CPU_DEFAULT_SHARE)
    if share < CPU_DEFAULT_BYTES:
        return share, f"{CPU_DEFAULT_SHARE:.0%} of the {format_bytes(available)} available"
    return CPU_DEFAULT_BYTES, "the default on a CPU"


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
