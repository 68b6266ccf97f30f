"""A load's figures as text."""

from typing import Any

from lightvllm.bench.load.metrics import METRICS

WIDTH = 60
TOTALS = {
    "completed": "Completed requests",
    "failed": "Failed requests",
    "duration": "Duration (s)",
    "total_input_tokens": "Input tokens",
    "total_output_tokens": "Output tokens",
    "max_concurrent_requests": "Most requests at the same time",
    "request_throughput": "Requests a second",
    "request_goodput": "Good requests a second",
    "output_throughput": "Output tokens a second",
    "total_token_throughput": "Input and output tokens a second",
}


def load_text(record: dict[str, Any]) -> str:
    """The figures of `lightvllm.bench.load.metrics.summarize` as a table."""
    lines = [_line(label, record[key]) for key, label in TOTALS.items() if record[key] is not None]
    if record["num_without_usage"]:
        lines.append(_line("Requests whose tokens the server did not count", record["num_without_usage"]))
    for name, title in METRICS.items():
        ending = f"_{name}_ms"
        found = {key.removesuffix(ending): value for key, value in record.items() if key.endswith(ending)}
        if found:
            lines += ["", f"{title} (ms)", *(_line("  " + which, value) for which, value in found.items())]
    return "\n".join(lines)


def _line(label: str, value: float | None) -> str:
    shown = "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<{WIDTH - 12}}{shown:>12}"
