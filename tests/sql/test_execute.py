"""Nothing a model writes can change a database, and what fails is told, not raised."""

import hashlib
import sqlite3
from pathlib import Path

import pytest

from lightvllm.sql import open_readonly, run_query


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop #1?.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE toys (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO toys VALUES (1, 'kite')"
    )
    connection.close()
    return path


ATTACKS = [
    "INSERT INTO toys VALUES (2, 'top')",
    "UPDATE toys SET name = 'top'",
    "DELETE FROM toys",
    "REPLACE INTO toys VALUES (1, 'top')",
    "DROP TABLE toys",
    "CREATE TABLE more (x)",
    "CREATE TEMP TABLE more (x)",
    "CREATE VIEW v AS SELECT 1",
    "CREATE TRIGGER t AFTER INSERT ON toys BEGIN SELECT 1; END",
    "CREATE VIRTUAL TABLE f USING fts5(x)",
    "ALTER TABLE toys RENAME TO tools",
    "VACUUM",
    "VACUUM INTO '{other}'",
    "REINDEX",
    "ANALYZE",
    "ATTACH DATABASE '{other}' AS other",
    "ATTACH ':memory:' AS m",
    "DETACH main",
    "PRAGMA query_only = OFF",
    "PRAGMA writable_schema = ON",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA user_version = 7",
    "PRAGMA table_info(toys)",
    "BEGIN",
    "BEGIN EXCLUSIVE",
    "COMMIT",
    "SAVEPOINT s",
    "SELECT load_extension('evil')",
    "SELECT writefile('{other}', 'x')",
    "SELECT 1; DELETE FROM toys",
    "WITH gone AS (SELECT 1) DELETE FROM toys",
    "EXPLAIN DELETE FROM toys",
    "",
    "-- nothing",
]


@pytest.mark.parametrize("sql", ATTACKS)
def test_only_reading_is_allowed(file: Path, tmp_path: Path, sql: str) -> None:
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    other = tmp_path / "other.sqlite"
    connection = open_readonly(file)
    result = run_query(connection, sql.format(other=other))
    assert result.error, result
    assert result.rows == []
    assert run_query(connection, "SELECT name FROM toys").rows == [("kite",)]
    connection.close()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_writable_connection_is_locked_while_the_statement_runs(file: Path) -> None:
    connection = sqlite3.connect(file)
    for sql in ATTACKS:
        assert run_query(connection, sql.format(other="x")).error, sql
    connection.execute("INSERT INTO toys VALUES (2, 'top')")  # and its owner may write again afterwards
    assert run_query(connection, "SELECT COUNT(*) FROM toys").rows == [(2,)]
    connection.close()


@pytest.mark.parametrize(
    "sql",
    [
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0",
    ],
)
def test_a_statement_without_end_is_stopped(file: Path, sql: str) -> None:
    connection = open_readonly(file)
    result = run_query(connection, sql, timeout_seconds=0.2)
    assert result.error == "stopped after 0.2 s"
    assert result.seconds < 2
    assert run_query(connection, "SELECT 1").rows == [(1,)]


def test_rows_and_sizes_are_limited(file: Path) -> None:
    connection = open_readonly(file)
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    result = run_query(connection, many, max_rows=5)
    assert (result.rows, result.truncated) == ([(1,), (2,), (3,), (4,), (5,)], True)
    assert not run_query(connection, "SELECT 1", max_rows=1).truncated
    assert run_query(connection, "SELECT zeroblob(2000000000)").error
    large = run_query(connection, many.replace("SELECT i FROM", "SELECT zeroblob(9000000) FROM"))
    assert large.truncated
    assert len(large.rows) < 10


def test_errors_are_returned_in_sqlites_words(file: Path) -> None:
    result = run_query(open_readonly(file), "SELECT colour FROM toys")
    assert result.error == "no such column: colour"
    assert result.sql == "SELECT colour FROM toys"


def test_reading_works(file: Path) -> None:
    result = run_query(
        open_readonly(file), "SELECT id, upper(name) AS n FROM toys WHERE id IN (SELECT MAX(id) FROM toys)"
    )
    assert (result.error, result.columns, result.rows, result.truncated) == (None, ["id", "n"], [(1, "KITE")], False)


def test_mistakes_name_the_argument(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        open_readonly(tmp_path / "none.sqlite")
    text = tmp_path / "text"
    text.write_text("not a database, though long enough to look like one, said the file. " * 20)
    with pytest.raises(ValueError, match="cannot be read as a SQLite database"):
        open_readonly(text)
    connection = open_readonly(file)
    with pytest.raises(ValueError, match="max_rows: is 0"):
        run_query(connection, "SELECT 1", max_rows=0)
    with pytest.raises(ValueError, match="timeout_seconds: is 0"):
        run_query(connection, "SELECT 1", timeout_seconds=0)
