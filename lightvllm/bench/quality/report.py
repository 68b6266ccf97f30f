"""The variants as a table and as JSON. Imports no torch."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    perplexity_error: float | None = None
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
        show: a variant's figure as text, beside the reference's if that is given.
    """

    key: str
    header: str
    show: Callable[[Row, Row | None], str]


def _mebibytes(key: str) -> Callable[[Row, Row | None], str]:
    return lambda row, _: f"{getattr(row, key) / 2**20:,.1f}"


def _plain(key: str, form: str) -> Callable[[Row, Row | None], str]:
    return lambda row, _: form.format(getattr(row, key))


def _perplexity(row: Row, reference: Row | None) -> str:
    assert row.perplexity is not None
    text = f"{row.perplexity:.4f}"
    if reference is None or reference.perplexity is None or row.perplexity_error is None:
        return text
    return f"{text} ({100 * (row.perplexity / reference.perplexity - 1):+.2f} ± {100 * row.perplexity_error:.2f} %)"


def _accuracy(row: Row, reference: Row | None) -> str:
    assert row.accuracy is not None
    text = f"{100 * row.accuracy:.1f} %"
    if reference is None or reference.accuracy is None:
        return text
    return f"{text} ({100 * (row.accuracy - reference.accuracy):+.1f})"


COLUMNS = (
    Column("disk_bytes", "files, MiB", _mebibytes("disk_bytes")),
    Column("weight_bytes", "weights, MiB", _mebibytes("weight_bytes")),
    Column("peak_bytes", "peak, MiB", _mebibytes("peak_bytes")),
    Column("output_tokens_per_s", "tokens/s", _plain("output_tokens_per_s", "{:,.0f}")),
    Column("perplexity", "perplexity", _perplexity),
    Column("accuracy", "SQL right", _accuracy),
    Column("top_1", "same top token", _plain("top_1", "{:.2%}")),
    Column("kl", "KL, nats", _plain("kl", "{:.5f}")),
    Column("logit_error", "logit error", _plain("logit_error", "{:.4f}")),
    Column("worst_logit_error", "worst", _plain("worst_logit_error", "{:.3f}")),
)


def row_of(outcome: Outcome, accuracy: float | None) -> Row:
    """A variant's figures. accuracy: None where nothing was asked."""
    name, disk = outcome.variant.name, outcome.disk_bytes
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
    has_value = getattr(row, column.key) is not None
    return column.show(row, None if row is reference else reference) if has_value else ""
