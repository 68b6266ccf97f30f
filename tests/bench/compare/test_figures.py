"""Loads, limits, ratios and tables, by hand; nothing runs."""

from pathlib import Path
from typing import Any

import pytest

from lightvllm.bench.compare import plot, report
from lightvllm.bench.compare.contenders import Peers, Start
from lightvllm.bench.compare.limits import Limits, decode_bound, prefill_bound
from lightvllm.bench.compare.loads import LOADS, Load, Timing, decode_rate, output_rate, prefill_rate
from lightvllm.bench.compare.turns import Plan, Result
from lightvllm.bench.random_checkpoint import Shape
from lightvllm.cli.measurement import check_plot

# 2 layers of 10 x (4 x 2 x (3 + 1) + 3 x 20) weights, and a head of 1000 x 10.
SHAPE = Shape(vocab_size=1000, hidden_size=10, intermediate_size=20, layers=2, heads=3, kv_heads=1, head_dim=4)
LAYERS, HEAD = 2 * 10 * (32 + 60), 10_000
LIMITS = Limits(memory=1e6, float32=1e6, bfloat16=2e6, int8=5e6, threads=2)
LOAD = Load(name="decode-8", num_requests=8, input_lens=(4, 4), output_lens=(3, 3))


def _plan(**changes: Any) -> Plan:
    plan: dict[str, Any] = {"shape": SHAPE, "dtypes": ("bf16",), "loads": (LOAD,), "repeats": 3, "threads": 2}
    return Plan(**(plan | {"peers": Peers(), "work": Path("/")} | changes))


def test_the_default_shape_has_qwen3_0_6b_s_sizes() -> None:
    shape = Shape()
    assert shape.layer_parameters == 440_401_920
    assert shape.head_parameters == 155_582_464


def test_rates() -> None:
    timing = Timing.of_requests(first=[1.0, 2.0], last=[5.0, 6.0], whole=7.0)
    assert timing == Timing(prefill=2.0, decode=4.0, whole=7.0)
    assert prefill_rate(LOAD, timing) == 8 * 4 / 2
    assert decode_rate(LOAD, timing) == 8 * 2 / 4  # the first token belongs to the prefill
    assert output_rate(LOAD, timing) == 8 * 3 / 7


def test_prefill_cannot_pass_the_arithmetic() -> None:
    # A token meets each layer's weights and, on average, 2.5 of 4 tokens; the last of each prompt the head.
    attention = 2 * 2 * 2 * 3 * 4
    operations = 32 * (2 * LAYERS + attention * 2.5) + 8 * 2 * HEAD
    bound = prefill_bound(LIMITS, SHAPE, "bf16", LOAD)
    assert bound.rate == pytest.approx(32 / (operations / 2e6))
    assert bound.by == "arithmetic"


def test_decode_of_one_cannot_pass_the_memory() -> None:
    one = Load(name="decode-1", num_requests=1, input_lens=(4, 4), output_lens=(4, 4), context_len=10)
    # Weights, and keys and values of 16 tokens on average: two layers, one head of four, two bytes each.
    for dtype, size in (("bf16", 2), ("int8", 1)):
        num_bytes = (LAYERS + HEAD) * size + 16 * 2 * 2 * 4 * 2
        bound = decode_bound(Limits(1e5, 1e9, 1e9, 1e9, 2), SHAPE, dtype, one)
        assert bound.by == "memory"
        assert bound.rate == pytest.approx(1e5 / num_bytes)
    # With 4-bit weights it is the products in int8 that bound eight requests here.
    operations = 8 * (2 * (LAYERS + HEAD) + 2 * 2 * 2 * 3 * 4 * 5.5)
    assert decode_bound(LIMITS, SHAPE, "4-bit", LOAD).rate == pytest.approx(8 / (operations / 5e6))


def test_limits_are_the_best_of_two() -> None:
    other = Limits(memory=2e6, float32=5e5, bfloat16=2e6, int8=6e6, threads=2)
    assert LIMITS.best(other) == Limits(memory=2e6, float32=1e6, bfloat16=2e6, int8=6e6, threads=2)


def test_runs_have_the_same_sizes_and_other_tokens() -> None:
    mixed = next(load for load in LOADS if load.name == "mixed")
    (prompts, lens), (others, other_lens) = mixed.draw(500, 0), mixed.draw(500, 1)
    assert (prompts, lens) == mixed.draw(500, 0)
    assert lens == other_lens
    assert [len(prompt) for prompt in prompts] == [len(prompt) for prompt in others]
    assert all(a != b for a, b in zip(prompts, others, strict=True))
    assert {len(prompt) for prompt in prompts} <= set(range(25, 257))
    assert len(set(lens)) > 10
    context = Load(name="context", num_requests=2, input_lens=(4, 4), context_len=50)
    for run in range(2):
        assert [prompt[:50] for prompt in context.draw(500, run)[0]] == [context.context(500)] * 2
    assert context.draw(500, 0)[0][0] != context.draw(500, 0)[0][1]


def _results() -> list[Result]:
    def timings(*decode: float) -> dict[str, list[Timing]]:
        return {"decode-8": [Timing(prefill=2.0, decode=seconds, whole=9.0) for seconds in decode]}

    return [
        Result("bf16", "lightvllm", Start(2.0, "0.1"), timings(1.0, 4.0, 2.0)),  # the median is 8 tokens/s
        Result("bf16", "vLLM", Start(50.0, "9.9"), timings(4.0, 4.0, 4.0)),
        Result("bf16", "fast", Start(1.0, "1"), timings(3.2)),
        Result("bf16", "broken", Start(3.0, "1"), failures={"decode-8": "out of memory"}),
        Result("bf16", "llama.cpp", failures={"start": "not given (--llama-bin)"}),
    ]


def test_cells_are_medians_with_ratios_to_the_best_peer() -> None:
    rows = report.cells(_plan(), LIMITS, _results())["bf16"]
    ours = rows["lightvllm"]
    assert ours["decode-8"].value == 8
    assert ours["decode-8"].runs == (16, 4, 8)
    assert ours["decode-8"].against_best == (pytest.approx(8 / 5), "fast")
    assert ours["start"].against_best == (0.5, "fast")  # of times the smaller is the better
    bound = decode_bound(LIMITS, SHAPE, "bf16", LOAD)
    assert ours["decode-8"].of_bound == (8 / bound.rate, bound.by)
    assert rows["vLLM"]["decode-8"].against_best is None
    assert rows["broken"]["decode-8"].reason == rows["broken"]["prefill"].reason == "out of memory"
    assert rows["broken"]["start"].value == 3
    assert rows["llama.cpp"]["start"].reason == "not given (--llama-bin)"
    assert "mixed" not in ours  # no such load


def test_without_a_peer_there_is_no_ratio() -> None:
    rows = report.cells(_plan(), LIMITS, [_results()[0], _results()[4]])["bf16"]
    assert all(cell.against_best is None for cell in rows["lightvllm"].values())


def test_the_table_says_all_of_it() -> None:
    lines = report.text(_plan(), LIMITS, _results()).splitlines()
    row = next(line for line in lines if line.startswith("lightvllm 0.1"))
    assert row.split() == ["lightvllm", "0.1", "16.0", "8.0", "2.00"]
    assert ["against", "best", "peer", "1.00x", "1.60x", "0.50x"] in [line.split() for line in lines]
    assert "  llama.cpp: not given (--llama-bin)" in lines
    assert "  broken, prefill, decode 8: out of memory" in lines
    assert "memory 0.0 GB/s" in lines[0]
    record = report.record(_plan(), LIMITS, _results())
    assert record["cells"]["bf16"]["lightvllm"]["decode-8"]["value"] == 8
    assert record["results"][0]["runs"]["decode-8"][1] == {"prefill": 2.0, "decode": 4.0, "whole": 9.0}


def test_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "compare.png"
    check_plot(path)
    plot.draw(_plan(), LIMITS, _results(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    for wrong in (tmp_path / "a.txt", tmp_path / "none" / "a.png"):
        with pytest.raises(ValueError, match="--plot: "):
            check_plot(wrong)
