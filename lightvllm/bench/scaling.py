"""How the engine's cost grows: with the context, with the batch, with the threads."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lightvllm.bench.compare.contenders import Driven, this_engine
from lightvllm.bench.compare.limits import cache_bytes
from lightvllm.bench.compare.loads import WARM_UP, Load, Timing, decode_rate, prefill_rate
from lightvllm.bench.compare.process import ContenderError
from lightvllm.bench.random_checkpoint import Shape, write_checkpoint

LEAST_CONTEXT = 1024
BLOCK_SIZE = 16  # tokens of a KV-cache block
FEW, MANY = 1, 32  # requests with which threads are compared


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        series: "context" (one request in so long a context), "batch" (so many requests at once), "threads, 1 request"
            or "threads, 32 requests".
        x: the context's length, the number of requests or of threads.
        prefill: prompt tokens a second; in "context" those since the point before, on top of what is there.
        decode: generated tokens a second, of all requests together.
        step: seconds from a token to the next one of the same request.
    """

    series: str
    x: int
    prefill: float
    decode: float
    step: float


def batch_loads(most: int) -> list[Load]:
    """1, 2, 4, ... requests."""
    return [
        Load(name=f"batch-{count}", num_requests=count, input_lens=(32, 32), output_lens=(17, 17))
        for count in _doubled(1, most)
    ]


def context_loads(most: int) -> list[Load]:
    """1,024, 2,048, ... tokens of context, each of which begins with the one before."""
    return [
        Load(name=f"context-{length}", num_requests=1, input_lens=(16, 16), output_lens=(17, 17), context_len=length)
        for length in _doubled(LEAST_CONTEXT, most)
    ]


def measure_scaling(
    work: Path, dtype: str, threads: int, max_context: int, max_batch: int, repeats: int, shape: Shape
) -> list[Point]:
    """Run the engine on a model of this shape with random weights, with each number of threads up to `threads`.

    Args:
        work: folder for the model, which is used again if it is there.
        dtype: bf16, int8 or 4-bit.

    Raises:
        ValueError: the engine fails, with its own words.
    """
    if not (work / "model" / "model.safetensors").is_file():
        write_checkpoint(work / "model", shape)
    loads = (*context_loads(max_context), *batch_loads(max_batch), WARM_UP)
    max_len = max(load.max_len for load in loads)
    most_tokens = max_len + max(load.num_requests * (load.max_len - load.context_len + BLOCK_SIZE) for load in loads)
    points: list[Point] = []
    for count in range(1, threads + 1):
        engine = this_engine(dtype, work, count, max_len, most_tokens * cache_bytes(shape, "bf16"))
        try:
            engine.start()
            engine.run(WARM_UP, shape.vocab_size, 0)
            points += _with_threads(engine, count, shape, repeats, max_batch)
            if count == threads:
                # Runs of their own: the prefix cache knows the prompts of those before.
                points += _batches(engine, batch_loads(max_batch), shape, range(repeats, 2 * repeats))
                points += _contexts(engine, context_loads(max_context), shape, repeats)
        except ContenderError as error:
            raise ValueError(str(error)) from None
        finally:
            engine.close()
    return points


def _with_threads(engine: Driven, threads: int, shape: Shape, repeats: int, max_batch: int) -> list[Point]:
    loads = [load for load in batch_loads(max_batch) if load.num_requests in (FEW, MANY)]
    points = _batches(engine, loads, shape, range(repeats))
    return [
        replace(point, series=f"threads, {point.x} request{'s' if point.x > 1 else ''}", x=threads) for point in points
    ]


def _batches(engine: Driven, loads: Sequence[Load], shape: Shape, runs: Sequence[int]) -> list[Point]:
    points = []
    for load in loads:
        timing = _median([engine.run(load, shape.vocab_size, run) for run in runs])
        points.append(_point("batch", load.num_requests, load, timing, prefill_rate(load, timing)))
    return points


def _contexts(engine: Driven, loads: Sequence[Load], shape: Shape, repeats: int) -> list[Point]:
    points = []
    before = 0
    for load in loads:
        timing = _median([engine.run(load, shape.vocab_size, run) for run in range(repeats)])
        prefill = (load.context_len - before) / engine.context_seconds[load.name]
        before = load.context_len
        points.append(_point("context", load.context_len, load, timing, prefill))
    return points


def _point(series: str, x: int, load: Load, timing: Timing, prefill: float) -> Point:
    return Point(series, x, prefill, decode_rate(load, timing), timing.decode / (load.output_lens[0] - 1))


def _median(timings: Sequence[Timing]) -> Timing:
    columns = zip(*[(timing.prefill, timing.decode, timing.whole) for timing in timings], strict=True)
    return Timing(*map(statistics.median, columns))


def _doubled(least: int, most: int) -> Iterator[int]:
    while least <= most:
        yield least
        least *= 2


def scaling_text(points: Sequence[Point]) -> str:
    """A block for each series."""
    lines = []
    for series, members in by_series(points).items():
        lines += ["", f"{series:22}{'prefill':>12}{'decode':>12}{'step':>12}"]
        lines += [f"{p.x:<22,}{p.prefill:>12.1f}{p.decode:>12.1f}{p.step * 1e3:>9.1f} ms" for p in members]
    return "\n".join(lines[1:])


def draw_scaling(points: Sequence[Point], path: Path) -> None:
    """Write a picture: a panel for each series."""
    from matplotlib.figure import Figure

    series = by_series(points)
    figure = Figure(figsize=(3.4 * len(series), 2.8), layout="constrained")
    for panel, (name, members) in zip(figure.subplots(1, len(series), squeeze=False)[0], series.items(), strict=True):
        for figures in ("prefill", "decode"):
            values = [getattr(point, figures) for point in members]
            panel.plot([point.x for point in members], values, marker="o", label=figures)
        if not name.startswith("threads"):
            panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_title(f"{name} (tokens/s)", fontsize=9)
        panel.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def by_series(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each series, in order."""
    series: dict[str, list[Point]] = {}
    for point in points:
        series.setdefault(point.series, []).append(point)
    return series
