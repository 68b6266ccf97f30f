"""Messages, answers, tables and the demo database."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from lightvllm.sql import (
    DEMO_QUESTIONS,
    QueryResult,
    answer,
    build_demo_database,
    build_messages,
    extract_sql,
    open_readonly,
    result_table,
    schema_prompt,
)


def shown(result: QueryResult, max_rows: int = 20) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(result_table(result, max_rows))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_messages() -> None:
    assert build_messages("t: a int", "  How\nmany? ") == [
        {"role": "system", "content": "t: a int"},
        {"role": "user", "content": "How many?"},
    ]
    with pytest.raises(ValueError, match="question: is empty"):
        build_messages("t: a int", "  ")


@pytest.mark.parametrize(
    "text", ["SELECT 1", " SELECT 1;\n", "```sql\nSELECT 1;\n```", "```\nSELECT 1\n``` That counts."]
)
def test_extract_sql(text: str) -> None:
    assert extract_sql(text) == "SELECT 1"


def test_demo_database_and_answers(tmp_path: Path) -> None:
    path = tmp_path / "demo.sqlite"
    build_demo_database(path)
    with pytest.raises(ValueError, match="exists already"):
        build_demo_database(path)
    connection = open_readonly(path)
    assert len(schema_prompt(connection).splitlines()) == 3
    assert len(DEMO_QUESTIONS) >= 12
    asked = []

    def write(messages: list[dict[str, str]]) -> str:
        asked.append(messages)
        return "SELECT COUNT(*) FROM cheeses"

    assert answer(connection, DEMO_QUESTIONS[0], write).rows == [(18,)]
    assert asked == [build_messages(schema_prompt(connection), DEMO_QUESTIONS[0])]
    assert answer(connection, "Drop it", lambda _: "DROP TABLE cheeses").error == "not authorized"


def test_a_database_without_tables_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.sqlite"
    empty.touch()
    with pytest.raises(ValueError, match="no tables"):
        answer(open_readonly(empty), "How many?", lambda _: "SELECT 1")


def test_tables_show_rows_errors_and_what_was_left_out() -> None:
    rows = [(1, "[red]kite[/red]", None, 1.5, b"ab"), (2, "top\x1b[31m", "x" * 99, 0.1 + 0.2, b"")]
    text = shown(QueryResult("SELECT", ["id", "[b]name", "c", "d", "e"], rows))
    for part in ("[b]name", "[red]kite[/red]", "NULL", "2 bytes", "0.3", "…"):
        assert part in text, part
    assert "\x1b" not in text
    assert "0.30000" not in text
    assert "... and 1 further rows" in shown(QueryResult("SELECT", ["a"], [(1,), (2,)]), max_rows=1)
    assert "... and more than 1 further rows" in shown(
        QueryResult("SELECT", ["a"], [(1,), (2,)], truncated=True), max_rows=1
    )
    assert "no rows" in shown(QueryResult("SELECT", ["a"], []))
    assert "does not run: near" in shown(QueryResult("SELEC", error="near SELEC"))
