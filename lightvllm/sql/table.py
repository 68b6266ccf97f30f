"""A query's result as a table for the terminal."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lightvllm.sql.execute import QueryResult

_MAX_CELL = 60


def result_table(result: QueryResult, max_rows: int = 20) -> Group | Text:
    """The rows as a rich table with a line that says how many were left out, or the error as red text."""
    if result.error is not None:
        return Text(f"This SQL does not run: {result.error}", style="red")
    table = Table(show_edge=False, pad_edge=False)
    for index, column in enumerate(result.columns):
        numeric = bool(result.rows) and all(isinstance(row[index], int | float | None) for row in result.rows)
        table.add_column(Text(column), justify="right" if numeric else "left")
    for row in result.rows[:max_rows]:
        table.add_row(*(_cell(value) for value in row))
    left_out = max(0, len(result.rows) - max_rows)
    if not result.rows:
        return Group(table, Text("no rows", style="dim"))
    if result.truncated:
        return Group(table, Text(f"... and more than {left_out} further rows", style="dim"))
    return Group(table, Text(f"... and {left_out} further rows", style="dim")) if left_out else Group(table)


def _cell(value: object) -> Text:
    """The value without markup or control characters: what a database holds must not paint the terminal."""
    if value is None:
        return Text("NULL", style="dim")
    if isinstance(value, bytes):
        return Text(f"{len(value)} bytes", style="dim")
    if isinstance(value, float):
        return Text(f"{value:.10g}")
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return Text(text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…")
