"""The schema prompt of ordinary and of odd databases."""

import sqlite3

import pytest

from lightvllm.sql import schema_prompt


def prompt(script: str) -> str:
    connection = sqlite3.connect(":memory:")
    connection.executescript(script)
    return schema_prompt(connection)


def test_types_keys_references_and_listed_values() -> None:
    assert prompt(
        """CREATE TABLE authors (author_id INTEGER PRIMARY KEY, name VARCHAR(40), born DATE, alive BOOLEAN);
        CREATE TABLE books (
            id INT PRIMARY KEY, author_id INT REFERENCES authors(author_id), genre TEXT, price DECIMAL(8, 2), cover BLOB
        );
        INSERT INTO authors VALUES (1, 'Ann', '1950-01-02', 1), (2, 'Bo', NULL, 0);
        INSERT INTO books VALUES (1, 1, 'crime', 5, NULL), (2, 1, 'crime', 6, NULL), (3, 2, 'essay', 7, NULL),
            (4, 2, 'essay', 8, NULL);"""
    ) == (
        "authors: author_id int key, name text, born date, alive bool\n"
        "books: id int key, author_id int -> authors.author_id, genre text [crime|essay], price real, cover blob"
    )


def test_no_tables() -> None:
    assert prompt("") == ""


def test_names_that_need_quotes() -> None:
    assert prompt(
        """CREATE TABLE "order details" ("unit price" REAL, "select" INT, "say ""hi" TEXT, Größe REAL, "2nd" INT);
        CREATE TABLE 東京 (名前 TEXT, other INT REFERENCES "order details"("unit price"));"""
    ) == (
        '"order details": "unit price" real, "select" int, "say ""hi" text, "Größe" real, "2nd" int\n'
        '"東京": "名前" text, other int -> "order details"."unit price"'
    )


def test_views_and_broken_views() -> None:
    assert prompt(
        """CREATE TABLE t (a INT, b); INSERT INTO t VALUES (1, 'x');
        CREATE VIEW v AS SELECT a, a * 1.5 AS more, b FROM t;
        CREATE TABLE gone (x INT);"""
    ).splitlines() == ["t: a int, b text", "v: a int, more real, b text", "gone: x int"]
    assert (
        prompt("CREATE TABLE t (a INT); CREATE TABLE u (a); CREATE VIEW v AS SELECT a FROM u; DROP TABLE u")
        == "t: a int"
    )


def test_columns_without_a_type_are_known_by_their_values() -> None:
    assert (
        prompt(
            "CREATE TABLE t (a, b, c, d, e);"
            "INSERT INTO t VALUES (1, 1.5, 'x', '2020-01-01', x'00'), (2, 2, 'y', NULL, NULL)"
        )
        == "t: a int, b real, c text, d date, e blob"
    )


def test_composite_keys_and_implied_reference_targets() -> None:
    assert prompt(
        """CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE pair (x INT, y INT, PRIMARY KEY (x, y));
        CREATE TABLE c (p_id INT REFERENCES p, x INT, y INT, lost INT REFERENCES nowhere,
                        FOREIGN KEY (x, y) REFERENCES pair(x, y));"""
    ).splitlines() == [
        "p: id int key",
        "pair: x int, y int",
        "c: p_id int -> p.id, x int, y int, lost int",
    ]


@pytest.mark.parametrize(
    ("values", "listed"),
    [
        (["a", "b"] * 3, " [a|b]"),
        (["a", "b", "c"], ""),  # as many values as rows: names, not categories
        (list("abcdef") * 3, ""),  # too many
        (["x" * 30, "y"] * 3, ""),  # too long
        (["a\nb", "c"] * 3, ""),  # would break the line
        ([None, None], ""),
    ],
)
def test_which_values_are_listed(values: list[str | None], listed: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (c TEXT)")
    connection.executemany("INSERT INTO t VALUES (?)", [(value,) for value in values])
    assert schema_prompt(connection) == f"t: c text{listed}"
