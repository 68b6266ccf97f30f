"""What the pages say of the code is what the code has: lines, settings, metrics."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import CODE_LINK, ROOT, definition_line, markdown_files, name_of, pages
from tests.docs.refresh import with_lines, with_tables
from tests.docs.tables import all_tables, exported_metrics

STALE = "is out of date: python -m tests.docs.refresh"
HOP = "`Scheduler.schedule` ([lightvllm/engine/scheduler.py:{0}](../lightvllm/engine/scheduler.py#L{0}))"


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_lines_of_functions(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert with_lines(text) == text, f"{name_of(page)} {STALE}"


def test_a_wrong_line_is_found() -> None:
    line = definition_line(ROOT / "lightvllm/engine/scheduler.py", "Scheduler.schedule")
    source = (ROOT / "lightvllm/engine/scheduler.py").read_text(encoding="utf-8")
    assert source.splitlines()[line - 1] == "    def schedule(self) -> StepInput:"
    assert with_lines(HOP.format(line)) == HOP.format(line)
    assert with_lines(HOP.format(line + 1)) == HOP.format(line)
    with pytest.raises(ValueError, match=r"Scheduler\.plan is defined 0 times"):
        with_lines(HOP.format(line).replace("Scheduler.schedule", "Scheduler.plan"))
    with pytest.raises(ValueError, match=r"Planner\.schedule is defined 0 times"):
        with_lines(HOP.format(line).replace("Scheduler.schedule", "Planner.schedule"))


def test_a_line_in_cpp_is_found() -> None:
    path = ROOT / "lightvllm/kernels/cpu/paged_attention.cpp"
    line = definition_line(path, "paged_attention")
    assert path.read_text(encoding="utf-8").splitlines()[line - 1].startswith("Tensor paged_attention(Tensor query")


def test_every_link_to_a_line_names_its_function() -> None:
    """In any other form nothing would keep the line right."""
    for page in markdown_files():
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(r"#L\d", text)) == len(CODE_LINK.findall(text)), name_of(page)


def test_tables() -> None:
    """Of settings and metrics: all that the code has, and nothing else."""
    shown = set()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert with_tables(text) == text, f"{name_of(page)} {STALE}"
        shown |= set(re.findall(r"^<!-- table: (.+) -->$", text, re.MULTILINE))
    assert shown == set(all_tables())


def test_a_wrong_table_is_found() -> None:
    page = "<!-- table: ServerConfig -->\n\n| a setting that is none |\n\n<!-- end of table -->"
    assert "a setting that is none" not in with_tables(page)
    assert "`engine_timeout`" in with_tables(page)


def test_the_tables_have_every_metric() -> None:
    """But for those of the process, the platform and Python, which the Prometheus library brings."""
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    of_the_library = {"process", "python"}
    for metric in exported_metrics():
        is_ours = metric.name.split("_")[0] not in of_the_library
        assert is_ours == (f"| `{metric.name}" in page), metric.name


def test_the_configuration_names_the_environment() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    source = (ROOT / "lightvllm" / "config.py").read_text(encoding="utf-8")
    names = re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", source)
    assert names
    assert all(f"`{name}`" in page for name in names)
