"""Fills a schema with rows and builds its SQLite database."""

import datetime
import random
import sqlite3

from lightvllm.training import words
from lightvllm.training.schema import Column, Schema, Table

_FIRST_DAY = datetime.date(2015, 1, 1)
_DAYS = 3650


def fill(schema: Schema, rng: random.Random) -> None:
    """Gives every table rows of plausible values; refs point to rows that exist."""
    sizes = {table.noun: rng.randint(12, 40) for table in schema.tables}
    for table in schema.tables:
        pools = {column.name: _pool(column, rng, sizes[table.noun]) for column in table.columns}
        for number in range(1, sizes[table.noun] + 1):
            row: dict[str, object] = {}
            for column in table.columns:
                if column.kind == "key":
                    row[column.name] = number
                elif column.kind == "ref":
                    # Some parents stay without children: "authors without books" needs an answer.
                    row[column.name] = rng.randint(1, max(1, int(sizes[column.target] * 0.8)))
                elif column.nullable and rng.random() < 0.15:
                    row[column.name] = None
                else:
                    row[column.name] = rng.choice(pools[column.name])
            table.rows.append(row)


def _pool(column: Column, rng: random.Random, size: int) -> list[object]:
    """The values a column draws from: few where people would group by it, about as many as rows elsewhere."""
    if column.kind == "category":
        return list(column.values)
    if column.kind == "flag":
        return [0, 1]
    if column.kind in ("key", "ref"):
        return []
    count = rng.randint(4, 8) if column.kind in ("city", "country") else size * 2
    return [_value(column, rng) for _ in range(count)]


def _value(column: Column, rng: random.Random) -> object:
    if column.kind in ("int", "year"):
        value = rng.randint(int(column.low), int(column.high))
        return round(value, -2) if column.high >= 20000 else value
    if column.kind == "real":
        return round(rng.uniform(column.low, column.high), 2)
    if column.kind == "date":
        return (_FIRST_DAY + datetime.timedelta(days=rng.randrange(_DAYS))).isoformat()
    return text_value(column.kind, rng)


def text_value(kind: str, rng: random.Random) -> str:
    """A value of a text kind (`schema.TEXT_KINDS`)."""
    adjective, thing = rng.choice(words.ADJECTIVES), rng.choice(words.THINGS)
    if rng.random() < 0.15:
        thing = words.made_up_word(rng).capitalize()
    first, last = rng.choice(words.FIRST_NAMES), rng.choice(words.LAST_NAMES)
    if rng.random() < 0.1:
        last = words.made_up_word(rng).capitalize()
    if kind == "person":
        return f"{first} {last}"
    if kind == "email":
        return f"{first.lower()}.{last.lower()}@{rng.choice(('mail', 'post', 'example'))}.{rng.choice(('com', 'org'))}"
    if kind == "city":
        return rng.choice(words.CITIES).replace("_", " ")
    if kind == "country":
        return rng.choice(words.COUNTRIES).replace("_", " ")
    if kind == "org":
        return f"{rng.choice((last, thing, adjective + thing.lower()))} {rng.choice(words.ORG_SUFFIXES)}"
    if kind == "title":
        other = rng.choice(words.THINGS)
        forms = (f"The {adjective} {thing}", f"{adjective} {thing}", f"{thing} and {other}", f"The {thing} of {other}")
        return rng.choice(forms)
    if kind == "place":
        return f"{rng.choice((adjective, thing, last))} {rng.choice(words.THINGS)}"
    if kind == "code":
        letters = "".join(rng.choice("ABCDEFGHKLMNPRSTVXZ") for _ in range(rng.randint(1, 3)))
        return f"{letters}{rng.choice(('', '-', '-'))}{rng.randint(10, 999)}"
    forms = (thing, f"{adjective} {thing}", f"{adjective} {thing}", words.made_up_word(rng))
    return rng.choice(forms)


_TYPES = {"int": ("INTEGER", "INT"), "year": ("INTEGER",), "real": ("REAL", "NUMERIC", "DECIMAL(10, 2)"),
          "date": ("DATE", "TEXT"), "flag": ("BOOLEAN", "BOOLEAN", "INTEGER"), "key": ("INTEGER",),
          "ref": ("INTEGER",)}  # fmt: skip


def build_database(schema: Schema, rng: random.Random) -> sqlite3.Connection:
    """The filled schema as an in-memory database."""
    connection = sqlite3.connect(":memory:")
    for table in schema.tables:
        connection.execute(f"CREATE TABLE {table.sql} ({', '.join(_declare(schema, table, rng))})")
        marks = ", ".join("?" * len(table.columns))
        rows = [tuple(row[column.name] for column in table.columns) for row in table.rows]
        connection.executemany(f"INSERT INTO {table.sql} VALUES ({marks})", rows)
    return connection


def _declare(schema: Schema, table: Table, rng: random.Random) -> list[str]:
    lines = []
    for column in table.columns:
        kind = rng.choice(_TYPES.get(column.kind, ("TEXT", "TEXT", "VARCHAR(50)")))
        line = f"{column.sql} {kind}"
        if column.kind == "key":
            line += " PRIMARY KEY"
        elif column.kind == "ref":
            target = schema.table(column.target)
            line += f" REFERENCES {target.sql}({target.key.sql})"
        lines.append(line)
    return lines
