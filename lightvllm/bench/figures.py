"""What one run of a workload took, and the median of several."""

import dataclasses
import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightvllm.bench.workload import Workload

# Of these the larger is the better; of the others, which are times, the smaller.
RATES = ("output_tokens_per_s", "total_tokens_per_s")


@dataclass(frozen=True)
class Figures:
    """One run. Times are in seconds.

    Attributes:
        seconds: from the first request sent to the last one finished.
        time_to_first_token, time_to_first_token_p99: from sending a request to its first token; median and 99th
            percentile over the requests.
        inter_token_latency, inter_token_latency_p99: the mean time between a request's tokens after the first; median
            and 99th percentile over the requests. None when only one token is generated.
        total_tokens_per_s: prompt tokens and generated ones.
    """

    seconds: float
    time_to_first_token: float
    time_to_first_token_p99: float
    inter_token_latency: float | None
    inter_token_latency_p99: float | None
    output_tokens_per_s: float
    total_tokens_per_s: float

    @classmethod
    def from_times(
        cls, workload: Workload, seconds: float, first_token_times: Sequence[float], last_token_times: Sequence[float]
    ) -> "Figures":
        """From when each request's first and last token came, in seconds after it was sent."""
        gaps = None
        if workload.output_len > 1:
            gaps = [
                (last - first) / (workload.output_len - 1)
                for first, last in zip(first_token_times, last_token_times, strict=True)
            ]
        return cls(
            seconds=seconds,
            time_to_first_token=statistics.median(first_token_times),
            time_to_first_token_p99=percentile(first_token_times, 99),
            inter_token_latency=None if gaps is None else statistics.median(gaps),
            inter_token_latency_p99=None if gaps is None else percentile(gaps, 99),
            output_tokens_per_s=workload.num_output_tokens / seconds,
            total_tokens_per_s=(workload.num_prompt_tokens + workload.num_output_tokens) / seconds,
        )


def medians(runs: Sequence[Figures]) -> Figures:
    """The median of each figure over the runs."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Figures):
        column = [getattr(run, field.name) for run in runs]
        values[field.name] = None if None in column else statistics.median(column)
    return Figures(**values)


def ratios(ours: Figures, theirs: Figures) -> dict[str, float | None]:
    """For each figure, how many times better ours is: above 1 is faster, in rates and times alike."""
    result: dict[str, float | None] = {}
    for field in dataclasses.fields(Figures):
        our, their = getattr(ours, field.name), getattr(theirs, field.name)
        if our is None or their is None:
            result[field.name] = None
        else:
            result[field.name] = our / their if field.name in RATES else their / our
    return result


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least this percentage of them do not exceed."""
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(0, int(rank) - 1)]


def peak_resident_bytes() -> int:
    """The most memory this process has held so far, memory-mapped files included."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose ru_maxrss begins with what the parent process held
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB
