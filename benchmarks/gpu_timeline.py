"""What a GPU did in a stretch of time, by a trace of PyTorch's profiler: how long it waited, and for what it worked.

A wait is a host's where it is longer than kernels of one graph are apart: a microsecond or two.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

HOST_GAP = 5e-6  # seconds
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # a trace's categories
NAME_LEN = 60


@dataclass(frozen=True)
class Work:
    """One kernel, copy or fill on the GPU, in seconds."""

    name: str
    start: float
    seconds: float


@dataclass(frozen=True)
class Timeline:
    """From the first work's start to the last one's end.

    Attributes:
        idle: the share of it in which nothing ran.
        host_gap: of it, in waits too long to be between two kernels of a graph.
        kernels: name -> share of the time in which something ran; the largest first.
        launches: of all, how many.
    """

    seconds: float
    idle: float
    host_gap: float
    kernels: dict[str, float]
    launches: int


def record(run: Callable[[], None]) -> Timeline:
    """What the GPU does while this runs."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return summarize(works_of(json.loads(path.read_text(encoding="utf-8"))))


def works_of(trace: dict[str, Any]) -> list[Work]:
    """Of a trace, whose times are in microseconds."""
    events = (event for event in trace["traceEvents"] if event.get("cat") in ON_GPU)
    return [Work(short_name(event["name"]), event["ts"] / 1e6, event["dur"] / 1e6) for event in events]


def summarize(works: Sequence[Work]) -> Timeline:
    """Of works in any order, which may overlap.

    Raises:
        ValueError: there are none.
    """
    if not works:
        raise ValueError("the profiler saw no work on the GPU")
    waits = list(_waits(works))
    begin, end = min(work.start for work in works), max(work.start + work.seconds for work in works)
    whole = end - begin
    times: Counter[str] = Counter()
    for work in works:
        times[work.name] += work.seconds  # type: ignore[assignment]
    total = sum(times.values())
    return Timeline(
        whole,
        sum(waits) / whole,
        sum(wait for wait in waits if wait > HOST_GAP) / whole,
        {name: seconds / total for name, seconds in times.most_common()},
        len(works),
    )


def _waits(works: Iterable[Work]) -> Iterable[float]:
    ordered = sorted(works, key=lambda work: work.start)
    end = ordered[0].start
    for work in ordered:
        if work.start > end:
            yield work.start - end
        end = max(end, work.start + work.seconds)


def short_name(name: str) -> str:
    """A kernel's name without its types: of a template that wraps another one, the inner."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    inner = re.search(r"(\w*(?:Functor|_kernel_impl|Ops?)\w*)[<>,(]", name) if name.startswith("at::native") else None
    outer = re.split(r"[<(]", name)[0]
    return (f"{outer} {inner[1]}" if inner else outer)[:NAME_LEN]
