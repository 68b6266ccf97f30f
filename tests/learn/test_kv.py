"""The formulas against what PyTorch counts while the real model runs, and against the engine's own plan."""

import argparse
from pathlib import Path

import matplotlib.figure
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightvllm.bench.compare.limits import attention_operations
from lightvllm.bench.random_checkpoint import Shape
from lightvllm.config import DEFAULT_MODEL, EngineConfig
from lightvllm.learn.contiguous import ContiguousAttention, cached_tokens, naive_tokens
from lightvllm.learn.kv import add_flags, from_args, kv
from lightvllm.model_config import ModelConfig
from lightvllm.models.bare import LightvLLM
from lightvllm.worker.kv_cache import plan_kv_cache

TINY = ModelConfig.from_hf(
    {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 100,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "dtype": "float32",
    }
)


def counted(tokens: object) -> int:
    """Operations of the next of these tokens, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        next(tokens)  # type: ignore[call-overload]
    return counter.get_total_flops()


def test_operations_are_those_of_the_real_model() -> None:
    model = LightvLLM.from_config(TINY).model.eval()
    points = kv(TINY).points
    pair = 4 * TINY.num_layers * TINY.num_heads * TINY.head_dim
    cached = cached_tokens(model, [7], 20, ContiguousAttention(TINY, 20, torch.float32))
    naive = naive_tokens(model, [7], 20)
    with_cache = without = 0
    for point in points[:20]:
        length = point.length
        with_cache += counted(cached)
        assert point.total_with == with_cache
        # PyTorch computes and counts the scores of tokens that a causal mask hides, too.
        without += counted(naive) - pair * (length * length - length * (length + 1) // 2)
        assert point.total_without == without
    assert points[0].step_with == points[0].step_without
    assert points[19].step_with == points[19].total_with - points[18].total_with
    assert points[19].step_without == points[19].total_without - points[18].total_without


def test_bytes_are_those_of_the_engine_s_cache() -> None:
    config = ModelConfig.from_pretrained(DEFAULT_MODEL)
    result = kv()
    options = EngineConfig(model="m", kv_cache_memory_bytes=1 << 26, max_model_len=64)
    plan = plan_kv_cache(options, config, torch.bfloat16, torch.device("cpu"))
    assert result.token_bytes * plan.block_size == plan.block_bytes
    assert [point.cache_bytes for point in result.points[:3]] == [result.token_bytes * n for n in (1, 2, 3)]
    attention = ContiguousAttention(config, 10, torch.bfloat16)
    assert attention.keys.nbytes + attention.values.nbytes == result.points[9].cache_bytes


def test_weights_are_those_of_the_real_model() -> None:
    model = LightvLLM.from_config(TINY).model
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    assert kv(TINY).weight_bytes == sum(matrix.nbytes for matrix in matrices)


def test_the_formulas_are_those_of_the_limits() -> None:
    """Which `bench compare` holds measurements against."""
    shape = Shape()
    points = kv(ModelConfig.from_hf(shape.hf_config()), max_len=3).points
    token = 2 * (shape.layer_parameters + shape.head_parameters)
    assert [point.step_with for point in points] == [token + attention_operations(shape) * n for n in (1, 2, 3)]


def test_a_sliding_window_bounds_attention() -> None:
    plain, window = (
        kv(ModelConfig(**{**vars(TINY), "layer_windows": windows})).points for windows in ((None,) * 3, (None, 8, 8))
    )
    pair = 4 * TINY.num_heads * TINY.head_dim
    assert plain[:8] == window[:8]
    assert plain[19].step_with - window[19].step_with == pair * 2 * (20 - 8)
    assert plain[19].step_without - window[19].step_without == pair * 2 * sum(n - 8 for n in range(9, 21))


def test_the_table_and_the_picture() -> None:
    result = kv(TINY, max_len=20)
    lines = result.table().splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["1", "2", "4", "8", "16", "20"]
    last = result.points[-1]
    assert f"{last.step_without / last.step_with:.1f}x" in lines[-1]
    assert f"{last.total_without / last.total_with:.1f}x" in lines[-1]
    figure = result.plot()
    assert isinstance(figure, matplotlib.figure.Figure)
    assert [len(panel.lines) for panel in figure.axes] == [2, 2, 2]
    assert {panel.get_yscale() for panel in figure.axes} == {"log"}
    assert list(figure.axes[0].lines[0].get_ydata()) == [point.step_without for point in result.points]


def test_the_flags(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert from_args(parser.parse_args([])) == kv()
    result = from_args(parser.parse_args(["--model", str(DEFAULT_MODEL), "--max-len", "5"]))
    assert result.points == kv(max_len=5).points
    with pytest.raises(ValueError, match=r"model: .* has no config\.json"):
        kv(tmp_path)


@pytest.mark.parametrize("max_len", [0, 65])
def test_lengths_that_cannot_be(max_len: int) -> None:
    with pytest.raises(ValueError, match=f"max_len: {max_len} is out of range, expected 1 to the model's 64 positions"):
        kv(TINY, max_len=max_len)
