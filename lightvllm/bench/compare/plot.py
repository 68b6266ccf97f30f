"""The comparison as a picture: a panel for each figure of each number type, a bar for each contender."""

from collections.abc import Sequence
from pathlib import Path

from lightvllm.bench.compare.limits import Limits
from lightvllm.bench.compare.report import COLUMNS, OURS, cells
from lightvllm.bench.compare.turns import Plan, Result


def draw(plan: Plan, limits: Limits, results: Sequence[Result], path: Path) -> None:
    """Write the picture. The dashed line is what the machine allows."""
    from matplotlib.figure import Figure

    table = cells(plan, limits, results)
    columns = [
        column for column in COLUMNS if any(column.key in row for rows in table.values() for row in rows.values())
    ]
    figure = Figure(figsize=(2.6 * len(columns), 1.9 * len(table)), layout="constrained")
    panels = figure.subplots(len(table), len(columns), squeeze=False)
    for line, (dtype, rows) in zip(panels, table.items(), strict=True):
        shown = [name for name, row in rows.items() if any(cell.value is not None for cell in row.values())]
        for panel, column in zip(line, columns, strict=True):
            row_cells = {name: rows[name][column.key] for name in shown}
            values = [cell.value or 0.0 for cell in row_cells.values()]
            colours = ["tab:orange" if name == OURS else "lightgrey" for name in shown]
            bars = panel.barh(shown, values, color=colours)
            labels = ["-" if cell.value is None else f"{cell.value:.3g}" for cell in row_cells.values()]
            panel.bar_label(bars, labels, padding=2, fontsize=7)
            bounds = [
                c.value / c.of_bound[0] for c in row_cells.values() if c.value is not None and c.of_bound is not None
            ]
            if bounds:
                panel.axvline(bounds[0], linestyle="--", color="tab:red", linewidth=1)
            panel.invert_yaxis()
            panel.margins(x=0.25)
            panel.tick_params(labelsize=7, labelleft=column is columns[0])
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_title(f"{dtype}: {column.header}{' (tokens/s)' if column.is_rate else ''}", fontsize=8)
    figure.savefig(path, dpi=150)
