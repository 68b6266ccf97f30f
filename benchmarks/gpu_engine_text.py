"""The engine's figures on a GPU as tables, beside what the GPU's own rates allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_rates import Rates

from lightvllm.bench.compare.limits import attention_operations, cache_bytes
from lightvllm.bench.random_checkpoint import QWEN3, Shape

# Bytes of a weight in the layers and in the head; scales are not counted.
WEIGHT_BYTES = {"bf16": (2.0, 2.0), "int8": (1.0, 1.0), "w4": (0.5, 1.0)}
PROMPT_LEN = 128  # of the requests whose steps are measured
SHOWN = 12  # kernels of a timeline

Key = tuple[str, str]  # model and number type


@dataclass(frozen=True)
class Target:
    """A figure and what was aimed at.

    Attributes:
        form: how both are written.
        is_limit: less is better.
    """

    name: str
    value: float
    aim: float
    form: str
    is_limit: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the aim was reached."""
        return self.value <= self.aim if self.is_limit else self.value >= self.aim

    def __str__(self) -> str:
        sign, word = "<=" if self.is_limit else ">=", "met" if self.is_met else "MISSED"
        return f"{word:7} {self.name:60} {self.value:{self.form}} ({sign} {self.aim:{self.form}})"


def targets_text(targets: Sequence[Target]) -> str:
    """A line each."""
    return "\n".join(map(str, targets))


def weight_bytes(shape: Shape, dtype: str) -> float:
    """Of all weights that a step reads."""
    layers, head = WEIGHT_BYTES[dtype]
    return shape.layer_parameters * layers + shape.head_parameters * head


def least_step(shape: Shape, dtype: str, count: int, context: int, rates: Rates) -> float:
    """Seconds of a decode step at the GPU's rates: weights and the requests' caches read, products computed."""
    num_bytes = weight_bytes(shape, dtype) + count * context * cache_bytes(shape, "bf16")
    operations = 2 * (shape.layer_parameters + shape.head_parameters) + attention_operations(shape) * context
    return rates.least_seconds(num_bytes, count * operations)


def least_prefill(shape: Shape, dtype: str, length: int, rates: Rates) -> float:
    """The same of a prompt; its last token alone needs the head."""
    attention = attention_operations(shape) * (length + 1) / 2
    operations = length * (2 * shape.layer_parameters + attention) + 2 * shape.head_parameters
    return rates.least_seconds(weight_bytes(shape, dtype), operations)


def figures_text(rows: Mapping[Key, dict[str, Any]], rates: Rates) -> str:
    """A line for each engine: a request alone, steps of several, prompts; each with its share of what is possible."""
    counts, lengths = (_common(rows, name) for name in ("steps", "prefills"))
    counts.remove(1)  # as `alone`, of fewer tokens
    cells = ["load", "alone, ms/token", *(f"{count} requests, tokens/s" for count in counts)]
    lines = ["".join([f"{'':14}", *(f"{cell:>27}" for cell in [*cells, *(f"{x} prompt tokens/s" for x in lengths)])])]
    for (model, dtype), row in rows.items():
        shape = QWEN3[model]
        alone = weight_bytes(shape, dtype) / rates.copy / row["token"]
        cells = [f"{row['load']:.1f} s", f"{row['token'] * 1e3:.3f} ({alone:.0%})"]
        for count in counts:
            step = row["steps"][str(count)]
            share = least_step(shape, dtype, count, PROMPT_LEN, rates) / step
            cells.append(f"{count / step:,.0f} ({share:.0%})")
        for length in lengths:
            seconds = row["prefills"][str(length)]
            share = least_prefill(shape, dtype, length, rates) / seconds
            cells.append(f"{length / seconds:,.0f} ({share:.0%})")
        lines.append("".join([f"{model + ' ' + dtype:14}", *(f"{cell:>27}" for cell in cells)]))
    lines += [
        "",
        "Of a request alone the share is that of the weights' bytes at the copy rate; of several, of weights and",
        "cache, or of the operations at the rate of products, whichever takes longer. Requests decode behind",
        f"{PROMPT_LEN} tokens.",
    ]
    return "\n".join(lines)


def _common(rows: Mapping[Key, dict[str, Any]], name: str) -> list[int]:
    """What was measured of all."""
    measured = [row[name] for row in rows.values()]
    return [int(size) for size in measured[0] if all(size in other for other in measured)]


def growth_text(model: str, row: dict[str, Any], rates: Rates) -> str:
    """One engine's steps with more requests, and one request's with more context."""
    shape = QWEN3[model]
    lines = [
        f"{model}, requests behind {PROMPT_LEN} tokens",
        f"{'requests':>10}{'step, ms':>12}{'tokens/s':>12}{'share':>8}",
    ]
    for count, step in ((int(count), step) for count, step in row["steps"].items()):
        share = least_step(shape, "bf16", count, PROMPT_LEN, rates) / step
        lines.append(f"{count:>10}{step * 1e3:>12.3f}{count / step:>12,.0f}{share:>8.0%}")
    lines += [
        "",
        "one request",
        f"{'context':>10}{'step, ms':>12}{'share':>8}{'prompt, ms':>13}{'tokens/s':>12}{'share':>8}",
    ]
    for length, step in ((int(length), step) for length, step in row["context_steps"].items()):
        prefill = row["prefills"][str(length)]
        shares = (
            least_step(shape, "bf16", 1, length, rates) / step,
            least_prefill(shape, "bf16", length, rates) / prefill,
        )
        decoded = f"{length:>10}{step * 1e3:>12.3f}{shares[0]:>8.0%}"
        lines.append(decoded + f"{prefill * 1e3:>13.1f}{length / prefill:>12,.0f}{shares[1]:>8.0%}")
    return "\n".join(lines)


def timeline_text(name: str, timeline: dict[str, Any]) -> str:
    """How long the GPU waited, and the kernels that took most of the rest."""
    lines = [
        f"{name}: {timeline['seconds'] * 1e3:.2f} ms traced, {timeline['launches']} launches",
        f"  idle {timeline['idle']:.1%} of the time, {timeline['host_gap']:.1%} of the time in waits for the host",
    ]
    kernels = list(timeline["kernels"].items())
    lines += [f"  {share:6.1%}  {kernel}" for kernel, share in kernels[:SHOWN]]
    rest = sum(share for _, share in kernels[SHOWN:])
    return "\n".join([*lines, *([f"  {rest:6.1%}  {len(kernels) - SHOWN} others"] if rest else [])])


def workload_text(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Both engines' runs of the same requests, and how many times as fast ours is."""
    lines = [f"{name}, {ours['output_tokens']:,} output tokens"]
    for run in (ours, theirs):
        rate = run["output_tokens"] / run["seconds"]
        words = ("", "") if run["is_done"] else ("more than ", "less than ")
        figures = f"{words[0]}{run['seconds']:.1f} s, {words[1]}{rate:,.0f} output tokens/s"
        first = "" if run["first_seconds"] is None else f" (a first run of others: {run['first_seconds']:.1f} s)"
        lines.append(f"  {run['how']:40} {figures}{first}")
    least = "" if theirs["is_done"] else "more than "
    return "\n".join([*lines, f"  {least}{theirs['seconds'] / ours['seconds']:.1f} times as fast"])


def start_text(model: str, found: dict[str, dict[str, float]]) -> str:
    """Seconds since the process was started, a line for each way to start."""
    names = ("import_torch", "load", "first_token", "second_token", "cold")
    lines = [
        f"{model}, seconds from starting Python",
        f"{'':16}" + "".join(f"{name.replace('_', ' '):>15}" for name in names),
    ]
    for way, times in found.items():
        lines.append(f"{way:16}" + "".join(f"{times[name]:>15.2f}" for name in names))
    return "\n".join([*lines, "", "cold: the first token of the very first start, which may compile kernels."])
