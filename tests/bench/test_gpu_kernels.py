"""`benchmarks/gpu_kernels.py` without a GPU: what it counts, what it compares, and what it says."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gpu_attention_cases
import gpu_cases
import gpu_kernels
import gpu_rates
import pytest
import torch
from gpu_rates import Case, Missing, Rates, Row
from torch import Tensor

from lightvllm.bench.random_checkpoint import QWEN3, Shape

RATES = Rates(copy=4e12, matrix=8e14)
TINY = Shape(vocab_size=200, hidden_size=64, intermediate_size=96, heads=4, kv_heads=2, head_dim=16)
COUNTED = ("vector_add", "rms_norm", "add_rms_norm", "rotary_qkv", "silu_and_mul", "products")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The cases at sizes that a CPU computes at once."""
    monkeypatch.setattr(gpu_cases, "SHAPES", {"0.6B": TINY, "8B": TINY})
    monkeypatch.setattr(gpu_cases, "ROWS", (1, 8))
    monkeypatch.setattr(gpu_cases, "VECTORS", (16, 24))
    sizes = {"HEADS": 4, "SMALL_HEADS": 2, "KV_HEADS": 2, "DIM": 16, "NUM_BLOCKS": 16, "PREFILL": 24, "PREFILLS": ()}
    sizes |= {"DECODE": (2, 40), "DECODES": [], "DENSE_DECODES": [(2, 40)], "FEW_DECODES": []}
    for name, size in sizes.items():
        monkeypatch.setattr(gpu_attention_cases, name, size)
    gpu_attention_cases.kv_cache.cache_clear()
    yield
    gpu_attention_cases.kv_cache.cache_clear()


def row(kernel: str, shape: str, way: str, share: float, target: float | None = 0.85, seconds: float = 1e-3) -> Row:
    return Row(kernel, shape, way, seconds, 1e9, 0.0, "copy", share, target, None)


@pytest.mark.parametrize("program", [gpu_kernels.main])
def test_it_says_that_there_is_no_gpu(program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(SystemExit, match="no CUDA device is here"):
        program()


@pytest.mark.parametrize("kernel", COUNTED)
def test_the_least_bytes_are_those_of_what_is_read_and_written(kernel: str, tiny: None) -> None:
    counted = 0
    for case in gpu_cases.KERNELS[kernel]():
        if isinstance(case, Case) and case.way in ("reference", "F.linear"):
            inputs = case.make()
            outputs = case.call(*inputs)
            tensors = [*inputs, *(outputs if isinstance(outputs, tuple) else (outputs,))]
            assert case.bytes == sum(x.nbytes for x in tensors if isinstance(x, Tensor)), case.shape
            counted += 1
    assert counted == {"vector_add": 2, "products": 16}.get(kernel, 8)


@pytest.mark.parametrize("kernel", ["embedding", "write_kv", "most_likely", "draw", "decode_attention"])
def test_the_other_cases_run(kernel: str, tiny: None) -> None:
    ways = {"decode_attention": "torch flash"}
    cases = [case for case in gpu_cases.KERNELS[kernel]() if case.way == ways.get(kernel, "reference")]
    assert cases
    for case in cases:
        assert isinstance(case, Case)
        case.call(*case.make())


def test_bytes_and_operations_of_real_sizes() -> None:
    by_name = {name: gpu_cases.KERNELS[name]() for name in ("rms_norm", "write_kv", "embedding")}
    cases = {(name, case.shape): case for name, found in by_name.items() for case in found if isinstance(case, Case)}
    tokens = 4096
    assert cases["rms_norm", "8B, 4096 tokens"].bytes == 2 * tokens * 4096 * 2 + 4096 * 2
    assert cases["write_kv", "8B, 4096 tokens"].bytes == 2 * (2 * tokens * 8 * 128 * 2) + tokens * 8
    assert cases["embedding", "0.6B, 4096 tokens"].bytes == 2 * tokens * 1024 * 2 + tokens * 8
    # 64 requests of 4,096 tokens: a gibibyte of keys and values, and a mebibyte of queries and outputs.
    assert gpu_attention_cases.decode_bytes(64, 4096, 32) == 2**30 + 2**20
    assert gpu_attention_cases.decode_bytes(1, 2, 16, is_int8=True) == 2 * 2 * 8 * 132 + 2 * 16 * 128 * 2
    # Three new tokens behind two see 3, 4 and 5 keys: twelve pairs, of 2 products x 2 operations x 32 heads x 128.
    assert gpu_attention_cases.prefill_flops(3, 2, 32) == 12 * 4 * 32 * 128
    assert gpu_attention_cases.prefill_flops(8192, 0, 32) == pytest.approx(0.5498e12, rel=1e-3)


def test_targets_are_of_the_fast_ways_where_there_is_enough_to_copy() -> None:
    aims = {(case.way, case.shape): case.target for case in gpu_cases.KERNELS["rms_norm"]() if isinstance(case, Case)}
    assert all(aim is None for (way, _), aim in aims.items() if way == "reference")
    assert all(
        aim == (0.85 if shape.endswith((" 4096 tokens", " 16384 tokens")) else None)
        for (way, shape), aim in aims.items()
        if way != "reference"
    )


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cases.gpu, "TRITON_TWINS", {"rms_norm": ("nowhere", "rms_norm")})
    monkeypatch.setattr(gpu_cases.gpu, "CUDA_TWINS", ("rms_norm",))
    monkeypatch.setattr(gpu_cases.gpu, "load_compiled", lambda: False)
    missing = {case.way: case.reason for case in gpu_cases.KERNELS["rms_norm"]() if isinstance(case, Missing)}
    assert missing["triton"] == "No module named 'lightvllm.kernels.triton.nowhere'"
    assert missing["cuda"] == "the compiled library is not there"
    assert gpu_rates.find("lightvllm.seeds", "nothing") == "module 'lightvllm.seeds' has no attribute 'nothing'"


def test_a_share_is_of_the_rate_that_bounds() -> None:
    assert RATES.least_seconds(4e9, 4e10) == 1e-3  # 1 ms of copying, 0.05 ms of products
    assert RATES.limit(4e9, 4e10) == "copy"
    assert RATES.least_seconds(4e9, 1.6e12) == 2e-3
    assert RATES.limit(4e9, 1.6e12) == "matrix"
    assert "85% of copy     85% met" in str(row("a", "b", "c", 0.85))
    assert "84% of copy     85% MISSED" in str(row("a", "b", "c", 0.84))
    assert str(replace(row("a", "b", "c", 0.84), of_equal=0.99)).endswith("99% of an equal one")
    assert "1000 GB/s" in str(row("a", "b", "c", 0.84))


def test_no_cache_holds_the_inputs() -> None:
    assert gpu_rates.num_sets(50e6, 50_000_000) == 4
    assert gpu_rates.num_sets(1e9, 50_000_000) == 1
    assert gpu_rates.num_sets(10, 50_000_000) == gpu_rates.MOST_SETS


def test_differences() -> None:
    right = torch.tensor([3.0, 4.0])
    assert gpu_rates.difference([right], [right]) == 0
    assert gpu_rates.difference([torch.tensor([3.0, 4.5]), right], [right, right]) == pytest.approx(0.1)
    assert gpu_rates.difference([torch.tensor([3.0, float("nan")])], [right]) == float("inf")
    assert gpu_rates.difference([torch.tensor([1, 2, 3, 4])], [torch.tensor([1, 2, 3, 5])]) == 0.25


def test_a_wrong_kernel_shows(tiny: None) -> None:
    def wrong(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
        key_cache.flatten(0, 1)[slots] = key

    (case, *_) = (case for case in gpu_cases.KERNELS["write_kv"]() if case.way == "reference")
    assert isinstance(case, Case)
    inputs = case.make()
    before = inputs[2].clone()
    cases = {
        call: Case("write_kv", "", "", call, case.make, 1, expected=case.call, changes_inputs=True)
        for call in (wrong, case.call)
    }
    assert gpu_kernels.compare(cases[wrong], inputs) > 0.01
    assert gpu_kernels.compare(cases[case.call], inputs) == 0
    assert torch.equal(inputs[2], before)  # the inputs are still those that will be timed


def test_the_summary_takes_the_best_way_and_holds_prefill_against_torch() -> None:
    rows = [
        row("rms_norm", "8B, 4096 tokens", "triton", 0.9),
        replace(row("rms_norm", "8B, 4096 tokens", "cuda", 0.95), of_equal=0.97),
        row("rms_norm", "8B, 16384 tokens", "cuda", 0.7),
        row("rms_norm", "8B, 1 tokens", "cuda", 0.01, None),
        row("prefill_attention", "8192, 32 heads", "triton", 0.7, None, seconds=2e-3),
        row("prefill_attention", "8192, 32 heads", "torch flash", 0.6, None, seconds=3e-3),
    ]
    assert gpu_kernels.summary(rows) == [
        "rms_norm           1 of 2 met: 8B, 4096 tokens 95% (cuda, 97% of an equal copy), 8B, 16384 tokens 70% (cuda)",
        "prefill_attention against torch's flash: 8192, 32 heads 1.50x",
    ]


def test_figures_are_written_down(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    gpu_rates.write_json(path, {"rates": RATES, "rows": [row("a", "b", "c", 0.5)]})
    written = json.loads(path.read_text())
    assert written["rates"] == {"copy": 4e12, "matrix": 8e14}
    assert written["rows"][0]["share"] == 0.5
    gpu_rates.write_json(None, {})


def test_the_shapes_are_qwen3_s() -> None:
    billions = {
        name: (shape.layer_parameters + shape.head_parameters * (1 if shape.tied else 2)) / 1e9
        for name, shape in QWEN3.items()
    }
    assert billions == pytest.approx({"0.6B": 0.596, "1.7B": 1.72, "4B": 4.02, "8B": 8.19}, rel=0.01)
