"""How cost grows, on a tiny model: every point is there, and its figures agree with each other."""

from pathlib import Path

import pytest

from lightvllm.bench.compare.contenders import Driven
from lightvllm.bench.compare.loads import Load, Timing
from lightvllm.bench.random_checkpoint import Shape
from lightvllm.bench.scaling import Point, by_series, context_loads, draw_scaling, measure_scaling, scaling_text
from lightvllm.cli.main import main

TINY = Shape(vocab_size=300, hidden_size=32, intermediate_size=48, layers=1, heads=4, kv_heads=2, head_dim=16)


def test_all_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightvllm.bench.compare.contenders.SETTLE", 0.0)
    runs: list[tuple[str, int]] = []
    run_load = Driven.run

    def run(self: Driven, load: Load, vocab_size: int, run: int) -> Timing:
        runs.append((load.name, run))
        return run_load(self, load, vocab_size, run)

    monkeypatch.setattr(Driven, "run", run)
    points = measure_scaling(tmp_path, "bf16", 1, max_context=2048, max_batch=2, repeats=1, shape=TINY)
    xs = {name: [point.x for point in members] for name, members in by_series(points).items()}
    assert xs == {"threads, 1 request": [1], "batch": [1, 2], "context": [1024, 2048]}
    assert all(point.prefill > 0 for point in points)
    for point in points:
        batch = point.x if point.series == "batch" else 1
        assert point.decode == pytest.approx(batch / point.step)
    assert len(set(runs)) == len(runs)  # the prefix cache would know the prompts of a run that comes again


def test_contexts_nest() -> None:
    loads = context_loads(4096)
    assert [load.context_len for load in loads] == [1024, 2048, 4096]
    short, long = (load.context(500) for load in loads[:2])
    assert long[:1024] == short


def test_what_is_shown(tmp_path: Path) -> None:
    points = [Point("context", 1024, 400.0, 20.0, 0.05), Point("batch", 2, 300.0, 40.0, 0.05)]
    lines = [line.split() for line in scaling_text(points).splitlines()]
    assert lines[1] == ["1,024", "400.0", "20.0", "50.0", "ms"]
    assert lines[3][0] == "batch"
    draw_scaling(points, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("flags", [["--max-context", "1000"], ["--max-batch", "0"], ["--plot", "a"]])
def test_wrong_flags_are_one_line(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scaling", *flags]) == 1
    assert capsys.readouterr().err.startswith(f"error: {flags[0]}: ")
