"""The notebook: it runs, what it ships with is what comes out, and its two editions differ in words alone."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).parent.parent.parent


def load_builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebook_build", ROOT / "examples" / "notebook" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


builder: Any = load_builder()
SOURCE = builder.SOURCE.read_text(encoding="utf-8")


def read(language: str) -> NotebookNode:
    return nbformat.read(builder.EDITIONS[language], as_version=4)


@pytest.fixture(scope="module")
def executed() -> NotebookNode:
    """The English edition, run now, on the code of this folder."""
    return builder.execute(read("en"))


@pytest.mark.parametrize("language", ["en", "ko"])
def test_each_edition_is_what_its_source_says(language: str) -> None:
    """After a change to the source: python examples/notebook/build.py"""
    shipped, built = read(language), builder.build(SOURCE, language)
    nbformat.validate(shipped)
    assert [(cell.cell_type, cell.source) for cell in shipped.cells] == [(c.cell_type, c.source) for c in built.cells]


def test_the_editions_differ_in_words_alone() -> None:
    english, korean = read("en"), read("ko")
    assert builder.code_cells(english) == builder.code_cells(korean)  # with their outputs
    assert [cell.cell_type for cell in english.cells] == [cell.cell_type for cell in korean.cells]
    for ours, theirs in zip(english.cells, korean.cells, strict=True):
        if ours.cell_type == "markdown":
            assert not re.search("[가-힣]", ours.source)
            assert re.search("[가-힣]", theirs.source)
            assert re.findall(r"https?://[^)\s]+", ours.source) == re.findall(r"https?://[^)\s]+", theirs.source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("<!-- en -->\nA\n", "followed by its Korean"),
        ("<!-- ko -->\nA\n<!-- en -->\nB\n", "followed by its Korean"),
        ("A\n<!-- en -->\nA\n<!-- ko -->\nB\n", "of no language is 'A'"),
        ("```python\n1\n```\nA\n", "of no language is 'A'"),
    ],
)
def test_a_source_that_is_not_whole_is_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        builder.build(source, "en")


def test_it_ships_with_its_outputs() -> None:
    cells = builder.code_cells(read("en"))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    pictures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 8  # six simulators, the cache measured, the comparison
    for cell in cells:
        assert not re.search(r"(?<!\w)/(home|root|work|tmp|usr|opt|Users)/", builder.output_text(cell)), cell.source


@pytest.mark.slow
@pytest.mark.timeout(600)  # a machine that is not busy takes a tenth of it
def test_it_runs_and_gives_what_it_ships_with(executed: NotebookNode) -> None:
    """But for times, drawn tokens and the like: cells that say so."""
    for now, shipped in zip(builder.code_cells(executed), builder.code_cells(read("en")), strict=True):
        if "varies" not in now.metadata.get("tags", []):
            assert builder.output_text(now) == builder.output_text(shipped), now.source
        else:
            assert bool(now.outputs) == bool(shipped.outputs), now.source


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_it_says_is_so(executed: NotebookNode) -> None:
    texts = "\n".join(builder.output_text(cell) for cell in builder.code_cells(executed))
    assert texts.count("same tokens: True") == 2  # in company, and without the cache
    assert "same log-probabilities, to the last bit: True" in texts
    assert "DELETE FROM books                      -> not authorized" in texts
    assert "SELECT count(*) FROM books             -> [(6,)]" in texts
    slower = re.search(r"([\d.]+) times as long", texts)
    assert slower is not None
    assert float(slower[1]) > 1  # recomputing all tokens for each one, even on a busy machine
    peaks = dict(re.findall(r"(lightvllm|transformers) +(\d+) MiB at most", texts))
    assert all(100 < int(peaks[name]) < 10_000 for name in ("lightvllm", "transformers"))
