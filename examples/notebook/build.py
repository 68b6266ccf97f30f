"""Makes both editions of the notebook of one source: python examples/notebook/build.py

`learn_vllm.md` holds text in two languages and the code that both share: after `<!-- en -->` the English text of a
cell, after `<!-- ko -->` the same in Korean, between ```python fences a code cell. Where a cell's output differs from
one run or one machine to another, its fence says so: ```python varies.

The code runs once, from top to bottom; both editions get its outputs. Needs the dev extra.
"""

import copy
import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Literal

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode, v4

Language = Literal["en", "ko"]

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "examples" / "notebook" / "learn_vllm.md"
EDITIONS: dict[Language, Path] = {
    "en": ROOT / "examples" / "learn_vllm.ipynb",
    "ko": ROOT / "examples" / "learn_vllm.ko.ipynb",
}
_CELL = re.compile(
    r"^<!-- (?P<language>en|ko) -->\n(?P<text>.*?)(?=^<!-- |^```python|\Z)"
    r"|^```python(?P<varies> varies)?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def build(source: str, language: Language) -> NotebookNode:
    """The notebook in one language, not executed.

    Raises:
        ValueError: a text is there in one language only, or in none.
    """
    found = list(_CELL.finditer(source))
    for cell, following in pairwise([*found, None]):
        if (cell["language"] == "en") != (following is not None and following["language"] == "ko"):
            raise ValueError(f"{SOURCE.name}: near {cell[0][:60]!r}: each English text is followed by its Korean one")
    if _CELL.sub("", source).strip():
        raise ValueError(f"{SOURCE.name}: of no language is {_CELL.sub('', source).strip()[:60]!r}")
    cells = []
    for cell in found:
        if cell["language"] == language:
            cells.append(v4.new_markdown_cell(cell["text"].strip()))
        elif cell["code"]:
            tags = {"tags": ["varies"]} if cell["varies"] else {}
            cells.append(v4.new_code_cell(cell["code"].strip(), metadata=tags))
    for number, node in enumerate(cells):
        node["id"] = f"cell-{number}"  # by default it would be another one each time
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Those that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: NotebookNode) -> NotebookNode:
    """A copy with its outputs. It runs in the folder of the examples, as in Jupyter, on this checkout's package.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    executed = copy.deepcopy(notebook)
    resources = {"metadata": {"path": str(ROOT / "examples")}}
    client = NotebookClient(executed, timeout=120, kernel_name="python3", resources=resources, record_timing=False)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client.execute(env={**os.environ, "PYTHONPATH": path})
    return executed


def output_text(cell: NotebookNode) -> str:
    """What a code cell put out, its pictures left out."""
    texts = []
    for output in cell.outputs:
        parts = {"text/plain": output.get("text", "")} | output.get("data", {})
        texts += [text for kind, text in parts.items() if not kind.startswith("image/")]
    return "".join(texts)


def main() -> None:
    """Build, execute and write both editions."""
    source = SOURCE.read_text(encoding="utf-8")
    executed = code_cells(execute(build(source, "en")))
    for cell in executed:
        for place in (ROOT, Path.home(), Path(sys.prefix)):
            if str(place) in output_text(cell):
                raise ValueError(f"the output of {cell.source[:60]!r} holds a path of this machine: {place}")
    for language, path in EDITIONS.items():
        notebook = build(source, language)
        for cell, done in zip(code_cells(notebook), executed, strict=True):
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
