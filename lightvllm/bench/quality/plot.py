"""The variants as a picture: a panel for each figure, a bar for each variant."""

from collections.abc import Sequence
from pathlib import Path

from lightvllm.bench.quality.report import Row, shown_columns


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the picture. The dashed line is the full precision's figure."""
    from matplotlib.figure import Figure

    columns, rows = shown_columns(rows), [row for row in rows if row.failure is None]
    width = min(5, len(columns))
    height = -(-len(columns) // width)
    figure = Figure(figsize=(2.7 * width + 1, (0.28 * len(rows) + 0.7) * height), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False).ravel()
    for index, (panel, column) in enumerate(zip(panels, columns, strict=False)):
        values = [getattr(row, column.key) for row in rows]
        colours = ["lightgrey" if row is rows[0] else "tab:orange" for row in rows]
        bars = panel.barh([row.name for row in rows], [value or 0.0 for value in values], color=colours)
        labels = ["" if value is None else column.show(row, None) for row, value in zip(rows, values, strict=True)]
        panel.bar_label(bars, labels, padding=2, fontsize=7)
        if values[0] is not None:
            panel.axvline(values[0], linestyle="--", color="tab:red", linewidth=1)
        panel.invert_yaxis()
        panel.margins(x=0.4)
        panel.tick_params(labelsize=7, labelleft=index % width == 0)
        panel.set_xticks([])  # the bars are labelled
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_title(column.header, fontsize=8)
    for panel in panels[len(columns) :]:
        panel.set_axis_off()
    figure.savefig(path, dpi=150)
