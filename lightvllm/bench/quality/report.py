"""The variants as a table and as JSON. Imports no torch."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightvllm.bench.quality.side_by_side import Outcome


@dataclass(frozen=True)
class Row:
    """One variant's figures; None where there is none.

    Attributes:
        disk_bytes, weight_bytes, peak_bytes: of the weights' files, of the weights as they are held, of the process.
        accuracy: the share of questions whose SQL gave the right rows.
        failure: why there is nothing, in words.

    Others are as in `measure.Result` and `measure.Divergence`.
    """

    name: str
    disk_bytes: int
    weight_bytes: int | None = None
    peak_bytes: int | None = None
    output_tokens_per_s: float | None = None
    perplexity: float | None = None
    accuracy: float | None = None
    top_1: float | None = None
    kl: float | None = None
    logit_error: float | None = None
    worst_logit_error: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Column:
    """A figure of the table and the plot.

    Attributes:
        show: the figure, and the reference's, as text.
    """

    key: str
    header: str
    show: Callable[[Any, Any], str]


def _mebibytes(value: float, reference: float | None) -> str:
    return f"{value / 2**20:,.1f}"


def _perplexity(value: float, reference: float | None) -> str:
    return f"{value:.4f}" + (f" ({100 * (value / reference - 1):+.2f} %)" if reference else "")


def _accuracy(value: float, reference: float | None) -> str:
    return f"{100 * value:.1f} %" + (f" ({100 * (value - reference):+.1f})" if reference else "")


COLUMNS = (
    Column("disk_bytes", "files, MiB", _mebibytes),
    Column("weight_bytes", "weights, MiB", _mebibytes),
    Column("peak_bytes", "peak, MiB", _mebibytes),
    Column("output_tokens_per_s", "tokens/s", lambda value, _: f"{value:,.0f}"),
    Column("perplexity", "perplexity", _perplexity),
    Column("accuracy", "SQL right", _accuracy),
    Column("top_1", "same top token", lambda value, _: f"{100 * value:.2f} %"),
    Column("kl", "KL, nats", lambda value, _: f"{value:.5f}"),
    Column("logit_error", "logit error", lambda value, _: f"{value:.4f}"),
    Column("worst_logit_error", "worst", lambda value, _: f"{value:.3f}"),
)


def row_of(outcome: Outcome, accuracy: float | None) -> Row:
    """A variant's figures. accuracy: None where nothing was asked."""
    name, disk = outcome.variant.name, outcome.variant.disk_bytes
    if outcome.result is None:
        return Row(name, disk, failure=outcome.failure)
    known = {field.name for field in dataclasses.fields(Row)}
    figures = outcome.result | (outcome.result["divergence"] or {})
    return Row(name, disk, accuracy=accuracy, **{key: value for key, value in figures.items() if key in known})


def table(rows: Sequence[Row]) -> str:
    """Markdown; the first row is what the others are compared with. Figures that no variant has are left out."""
    columns = shown_columns(rows)
    lines = ["| " + " | ".join(["", *(column.header for column in columns)]) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for row in rows:
        cells = [row.failure or ""] + [""] * (len(columns) - 1)
        if row.failure is None:
            cells = [_cell(column, row, rows[0]) for column in columns]
        lines.append("| " + " | ".join([row.name, *cells]) + " |")
    return "\n".join(lines)


def shown_columns(rows: Sequence[Row]) -> list[Column]:
    """The figures that any variant has."""
    return [column for column in COLUMNS if any(getattr(row, column.key) is not None for row in rows)]


def _cell(column: Column, row: Row, reference: Row) -> str:
    value = getattr(row, column.key)
    return "" if value is None else column.show(value, None if row is reference else getattr(reference, column.key))
