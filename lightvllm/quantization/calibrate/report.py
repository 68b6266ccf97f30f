"""What rounding did to each linear layer, as JSON and as a table."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerError:
    """One linear layer's. Errors are relative: the norm of what changed over the norm of what was there.

    Attributes:
        weight_error: of the weight.
        output_error: of the layer's output for calibration inputs, as they come from the rounded layers before it; with
            the inputs rounded where the scheme does that. None without calibration data.
    """

    name: str
    weight_error: float
    output_error: float | None


@dataclass(frozen=True)
class Report:
    """What was done.

    Attributes:
        calibration_tokens: 0 without calibration data.
        bytes_before, bytes_after: of all tensors.
    """

    scheme: str
    group_size: int | None
    calibration_tokens: int
    bytes_before: int
    bytes_after: int
    layers: tuple[LayerError, ...]

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


def report_text(report: Report) -> str:
    """A row for each decoder layer, a column for each of its linear layers: in percent, the output's error if known."""
    has_outputs = report.calibration_tokens > 0
    rows: dict[str, list[LayerError]] = {}
    for layer in report.layers:
        rows.setdefault(layer.name.split(".")[2], []).append(layer)  # model.layers.INDEX.self_attn.q_proj
    columns = [layer.name.rpartition(".")[2] for layer in next(iter(rows.values()))]
    what = f"outputs for {report.calibration_tokens:,} tokens" if has_outputs else "weights"
    lines = [f"error of each layer's {what}, in %", "", _row("layer", columns)]
    lines += [_row(index, [f"{100 * _shown(layer):.2f}" for layer in layers]) for index, layers in rows.items()]
    mean = [sum(map(_shown, layers)) / len(layers) for layers in zip(*rows.values(), strict=True)]
    lines += [_row("mean", [f"{100 * value:.2f}" for value in mean]), ""]
    before, after = report.bytes_before / 2**20, report.bytes_after / 2**20
    lines.append(f"{report.scheme}: {before:.1f} MiB of tensors are {after:.1f} now")
    return "\n".join(lines)


def _shown(layer: LayerError) -> float:
    return layer.weight_error if layer.output_error is None else layer.output_error


def _row(head: str, cells: Sequence[str]) -> str:
    return f"{head:>6}" + "".join(f"{cell:>11}" for cell in cells)
