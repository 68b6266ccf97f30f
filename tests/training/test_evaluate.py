"""Execution accuracy: right rows count, whatever the SQL looks like; the rest does not."""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from lightvllm.training.evaluate import accuracy_table, evaluate, same_rows, write_report
from lightvllm.training.generator import make_sample


@pytest.fixture
def connection() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.executescript(
        "CREATE TABLE t (a INT, b REAL); INSERT INTO t VALUES (1, 0.1), (2, 0.2), (2, 0.3), (3, 0.3)"
    )
    return connection


@pytest.mark.parametrize(
    ("expected", "written", "correct"),
    [
        ("SELECT a FROM t", "select A as x from T order by b desc", True),
        ("SELECT a FROM t", "SELECT DISTINCT a FROM t", False),
        ("SELECT a FROM t ORDER BY b", "SELECT a FROM t ORDER BY b DESC", False),
        ("SELECT SUM(b) FROM t", "SELECT 0.3 + 0.3 + 0.2 + 0.1", True),
        ("SELECT a FROM t WHERE a = 9", "SELECT b FROM t WHERE a > 9", True),
        ("SELECT a FROM t", "SELECT a, a FROM t", False),
    ],
)
def test_rows_decide(connection: sqlite3.Connection, expected: str, written: str, correct: bool) -> None:
    assert same_rows(connection, expected, written) == (correct, None)


def test_sql_that_does_not_run_is_wrong_and_says_why(connection: sqlite3.Connection) -> None:
    assert same_rows(connection, "SELECT a FROM t", "SELECT z FROM t") == (False, "no such column: z")
    assert same_rows(connection, "SELECT a FROM t", "DELETE FROM t") == (False, "not authorized")


def test_a_perfect_and_a_useless_writer(tmp_path: Path) -> None:
    known = {}
    for index in range(5):
        sample = make_sample("unseen_domains", 1, index, 4)
        known.update({(sample.schema, pair.question): pair.sql for pair in sample.pairs})

    def perfect(chats: Sequence[list[dict[str, str]]]) -> list[str]:
        return [known[chat[0]["content"], chat[1]["content"]] for chat in chats]

    right = evaluate(perfect, "unseen_domains", 1, 5, 4)
    assert len(right) == len(known) > 10
    assert all(outcome.correct for outcome in right)
    wrong = evaluate(lambda chats: ["SELECT nothing"] * len(chats), "unseen_phrasings", 1, 5, 4)
    assert not any(outcome.correct for outcome in wrong)
    table = accuracy_table(right + wrong)
    assert f"| all | 100.0 % of {len(right)} | 0.0 % of {len(wrong)} |" in table.splitlines()
    write_report(right + wrong, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["totals"]["unseen_domains"] == {"questions": len(right), "accuracy": 1.0, "does_not_run": 0}
    assert report["totals"]["unseen_phrasings"]["does_not_run"] == len(wrong)
    assert len(report["outcomes"]) == len(right) + len(wrong)
