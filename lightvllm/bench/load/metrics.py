"""What a run amounts to, under the names of vLLM's `bench serve`."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lightvllm.bench.load.run import Run
from lightvllm.bench.load.stream import Outcome

# Which figures there are of requests, and what they are called in the table.
METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
    "client_queue_time": "Held back by --max-concurrency",
}
# Of those the ones that a limit can be put on: one value a request.
LIMITABLE = ("ttft", "tpot", "e2el")


def output_len(outcome: Outcome) -> int:
    """Tokens that were generated: as the server counted, or, where it did not, a token for each piece of output."""
    if outcome.output_tokens is not None:
        return outcome.output_tokens
    return len(outcome.itls) + bool(outcome.text)


def time_per_output_token(outcome: Outcome) -> float | None:
    """Mean seconds from token to token after the first; None of a request with only one."""
    length = output_len(outcome)
    return (outcome.latency - outcome.ttft) / (length - 1) if length > 1 else None


def summarize(
    run: Run,
    metrics: Sequence[str] = ("ttft", "tpot", "itl", "e2el"),
    percentiles: Sequence[float] = (99.0,),
    goodput: dict[str, float] | None = None,
) -> dict[str, Any]:
    """All figures of a run, as JSON has them; times end in _ms. Failed requests count in `failed` and nowhere else.

    Args:
        metrics: of `METRICS`, those to give mean, median, standard deviation and percentiles of.
        goodput: of `LIMITABLE`, the most milliseconds for a request to be a good one.
    """
    good = [outcome for outcome in run.outcomes if outcome.error is None]
    input_tokens = sum(outcome.prompt_tokens or 0 for outcome in good)
    output_tokens = sum(map(output_len, good))
    record: dict[str, Any] = {
        "duration": run.seconds,
        "completed": len(good),
        "failed": len(run.outcomes) - len(good),
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": len(good) / run.seconds,
        "request_goodput": None if goodput is None else sum(_is_good(o, goodput) for o in good) / run.seconds,
        "output_throughput": output_tokens / run.seconds,
        "total_token_throughput": (input_tokens + output_tokens) / run.seconds,
        "max_concurrent_requests": peak_concurrency(run.outcomes),
        "num_without_usage": sum(outcome.output_tokens is None for outcome in good),
    }
    values = {
        "ttft": [outcome.ttft for outcome in good],
        "tpot": [tpot for outcome in good if (tpot := time_per_output_token(outcome)) is not None],
        "itl": [itl for outcome in good for itl in outcome.itls],
        "e2el": [outcome.latency for outcome in good],
        "client_queue_time": [outcome.queue_time for outcome in good],
    }
    for name in metrics:
        record |= _statistics(name, values[name], percentiles)
    return record


def details(run: Run) -> dict[str, Any]:
    """What each request did, in lists of equal length; seconds."""
    return {
        "input_lens": [outcome.prompt_tokens for outcome in run.outcomes],
        "output_lens": [output_len(outcome) for outcome in run.outcomes],
        "start_times": [outcome.start for outcome in run.outcomes],
        "queue_times": [outcome.queue_time for outcome in run.outcomes],
        "ttfts": [outcome.ttft for outcome in run.outcomes],
        "itls": [outcome.itls for outcome in run.outcomes],
        "latencies": [outcome.latency for outcome in run.outcomes],
        "generated_texts": [outcome.text for outcome in run.outcomes],
        "errors": [outcome.error for outcome in run.outcomes],
    }


def count_errors(run: Run) -> list[tuple[str, int]]:
    """The different errors and how often each came, the commonest first."""
    return Counter(outcome.error for outcome in run.outcomes if outcome.error is not None).most_common()


def peak_concurrency(outcomes: Sequence[Outcome]) -> int:
    """The most requests that ran at the same moment. One that ends as another begins is not beside it."""
    ends = [(outcome.start + outcome.latency, -1) for outcome in outcomes if outcome.error is None]
    starts = [(outcome.start, 1) for outcome in outcomes if outcome.error is None]
    running = peak = 0
    for _, change in sorted(starts + ends):
        running += change
        peak = max(peak, running)
    return peak


def percentile(values: Sequence[float], percent: float) -> float:
    """With linear interpolation between the two nearest values, as numpy has it."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def _statistics(name: str, values: Sequence[float], percentiles: Sequence[float]) -> dict[str, float | None]:
    """In milliseconds; None where there is no value."""
    keys = [f"{which}_{name}_ms" for which in ("mean", "median", "std", *(f"p{percent:g}" for percent in percentiles))]
    if not values:
        return dict.fromkeys(keys)
    mean = sum(values) / len(values)
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    found = [mean, percentile(values, 50), std, *(percentile(values, percent) for percent in percentiles)]
    return {key: value * 1e3 for key, value in zip(keys, found, strict=True)}


def _is_good(outcome: Outcome, goodput: dict[str, float]) -> bool:
    seconds = {"ttft": outcome.ttft, "tpot": time_per_output_token(outcome) or 0.0, "e2el": outcome.latency}
    return all(seconds[name] * 1e3 <= limit for name, limit in goodput.items())
