"""Measurements as JSON and as text."""

import dataclasses
from typing import Any

from lightvllm.bench.figures import RATES, Figures, ratios
from lightvllm.bench.host import HostTime
from lightvllm.bench.internals import worker_of
from lightvllm.bench.machine import describe_machine
from lightvllm.bench.serving import Comparison
from lightvllm.bench.startup import Startup
from lightvllm.bench.workload import Workload
from lightvllm.llm import LLM

LABELS = {
    "time_to_first_token": "time to first token",
    "time_to_first_token_p99": "  99th percentile",
    "inter_token_latency": "inter-token latency",
    "inter_token_latency_p99": "  99th percentile",
    "output_tokens_per_s": "output tokens/s",
    "total_tokens_per_s": "total tokens/s",
    "seconds": "whole run",
}


def describe_setting(llm: LLM) -> dict[str, Any]:
    """What any measurement of a model is to be read with: the machine, the model and how it was opened."""
    worker = worker_of(llm)
    return {
        "model": llm.config.model,
        "dtype": str(worker.dtype).removeprefix("torch."),
        "device": str(worker.device),
        "options": _changed_options(llm),
        "machine": describe_machine(llm.model_config),
    }


def setting_text(setting: dict[str, Any]) -> str:
    """The setting in a few lines."""
    machine = setting["machine"]
    versions = machine["versions"]
    return (
        f"{setting['model']} in {setting['dtype']} on {setting['device']}\n"
        f"LightvLLM {versions['lightvllm']}, PyTorch {versions['torch']}, "
        f"{machine['cpu']['name']} with {machine['cpu']['threads']} threads"
        + "".join(f", {gpu['name']}" for gpu in machine["gpus"])
    )


def comparison_record(workload: Workload, comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON has it: the medians, how much better the engine is, and every run."""
    medians = comparison.medians()
    record: dict[str, Any] = {
        "workload": dataclasses.asdict(workload),
        "prompt_tokens": workload.num_prompt_tokens,
        "output_tokens": workload.num_output_tokens,
        **{name: dataclasses.asdict(figures) for name, figures in medians.items()},
        "memory": dataclasses.asdict(comparison.memory) | {"kv_cache_usage": comparison.memory.kv_cache_usage},
        "prefix_cache_hit_rate": comparison.prefix_cache_hit_rate,
        "runs": {name: [dataclasses.asdict(run) for run in runs] for name, runs in comparison.runs.items()},
    }
    ours = medians.pop("lightvllm")
    for theirs in medians.values():
        record["ratio"] = ratios(ours, theirs)
        record["num_same_outputs"] = comparison.num_same_outputs
    return record


def comparison_text(workload: Workload, comparison: Comparison) -> str:
    """A comparison as a table, and the engine's memory below it."""
    medians = comparison.medians()
    memory = comparison.memory
    lines = [f"{workload}, medians of {len(comparison.runs['lightvllm'])} runs", "", figures_table(medians)]
    lines += [
        "",
        f"peak memory          {memory.peak_bytes / 2**30:.2f} GiB",
        f"KV cache in use      {memory.kv_cache_usage:.1%} at most "
        f"({memory.peak_num_used_blocks} of {memory.num_blocks} blocks)",
        f"prefix-cache hits    {comparison.prefix_cache_hit_rate:.1%} of prompt tokens",
    ]
    if comparison.num_same_outputs is not None:
        lines.append(f"same outputs         {comparison.num_same_outputs} of {workload.num_requests} requests")
    return "\n".join(lines)


def figures_table(columns: dict[str, Figures]) -> str:
    """A line for each figure, a column for each of one or two contenders, of two also how much better the first is."""
    names, figures = list(columns), list(columns.values())
    better = ratios(*figures) if len(figures) == 2 else {}
    header = [f"{'':21}", *(f"{name:>14}" for name in names), f"{'ratio':>9}" if better else ""]
    lines = ["".join(header).rstrip()]
    for field, label in LABELS.items():
        cells = [_figure(field, getattr(column, field)) for column in figures]
        ratio = better.get(field)
        cells = [f"{label:21}", *(f"{cell:>14}" for cell in cells), "" if ratio is None else f"{ratio:>8.2f}x"]
        lines.append("".join(cells))
    return "\n".join(lines)


def host_text(host: HostTime) -> str:
    """Host time as a few lines."""
    return (
        f"{host.num_requests} requests in decode, medians of {host.num_steps} steps\n\n"
        f"step                 {seconds_text(host.step):>12}\n"
        f"  model and logits   {seconds_text(host.model):>12}\n"
        f"  outside the model  {seconds_text(host.outside):>12} (99th percentile {seconds_text(host.outside_p99)})\n"
        f"    of it sampling   {seconds_text(host.sampling):>12}"
    )


def startup_text(startup: Startup) -> str:
    """Start-up as a few lines."""
    return (
        f"each in a new process, medians of {startup.repeats}\n\n"
        f"to the first token   {seconds_text(startup.first_token):>12}\n"
        f"import torch alone   {seconds_text(startup.import_torch):>12}"
    )


def seconds_text(seconds: float) -> str:
    """In the unit that shows it best."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def _figure(field: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if field in RATES else seconds_text(value)


def _changed_options(llm: LLM) -> dict[str, Any]:
    """The engine options that are not as they are by default; the hub's token is nobody's business."""
    fields = dataclasses.fields(llm.config)
    changed = {f.name: getattr(llm.config, f.name) for f in fields if getattr(llm.config, f.name) != f.default}
    return {name: value for name, value in changed.items() if name not in ("model", "hf_token")}
