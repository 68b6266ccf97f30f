"""How much fits in a cache, and that what is planned is what is made."""

import pytest
import torch

from lightvllm.config import EngineConfig
from lightvllm.model_config import ModelConfig
from lightvllm.worker.kv_cache import KVCachePlan, allocate_kv_cache, plan_kv_cache

CPU = torch.device("cpu")
MODEL = ModelConfig.from_hf(
    {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 128,
    }
)


def plan(kv_cache_dtype: str, dtype: torch.dtype) -> KVCachePlan:
    config = EngineConfig(model="", kv_cache_dtype=kv_cache_dtype, kv_cache_memory_bytes=4 << 20)  # type: ignore[arg-type]
    return plan_kv_cache(config, MODEL, dtype, CPU)


@pytest.mark.parametrize(("dtype", "ratio"), [(torch.bfloat16, 1.9), (torch.float32, 3.8)])
def test_int8_holds_more_in_the_same_bytes(dtype: torch.dtype, ratio: float) -> None:
    assert plan("int8", dtype).num_blocks >= ratio * plan("auto", dtype).num_blocks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_the_cache_has_the_planned_bytes(kv_cache_dtype: str, dtype: torch.dtype) -> None:
    planned = plan(kv_cache_dtype, dtype)
    cache = allocate_kv_cache(planned, MODEL, CPU)
    assert len(cache) == 2
    size = sum(x.numel() * x.element_size() for layer in cache for x in (layer.key, layer.value))
    assert size == planned.num_blocks * planned.block_bytes
    assert 4 << 20 >= size > (4 << 20) - planned.block_bytes
    assert {x.dtype for layer in cache for x in (layer.key, layer.value)} == {planned.dtype}


def test_the_plan_says_the_type() -> None:
    assert "tokens in int8, " in str(plan("int8", torch.bfloat16))
    assert "tokens in bfloat16, " in str(plan("auto", torch.bfloat16))


def test_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kv_cache_dtype: 'fp8' is not supported, expected one of \['auto', 'int8'\]"):
        plan("fp8", torch.bfloat16)
