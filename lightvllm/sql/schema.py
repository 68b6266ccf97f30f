"""Reading the schema of any SQLite file into the compact text the default model is trained on.

One line a table: its name, then every column with its type, `key` for the primary key, `-> table.column` for a foreign
key and, for text columns of few distinct values, those values:

    books: book_id int key, title text, author_id int -> authors.author_id, genre text [Crime|Fantasy], published date
"""

import re
import sqlite3

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
# Words SQLite refuses as bare names, or that would read as something else in the SQL we ask for.
_KEYWORDS = frozenset(
    """ADD ALL ALTER AND AS AUTOINCREMENT BETWEEN CASE CHECK COLLATE COMMIT CONSTRAINT CREATE CROSS DEFAULT DEFERRABLE
    DELETE DISTINCT DROP ELSE ESCAPE EXCEPT EXISTS FOREIGN FROM FULL GROUP HAVING IN INDEX INNER INSERT INTERSECT INTO
    IS ISNULL JOIN LEFT LIMIT NATURAL NOT NOTHING NOTNULL NULL ON OR ORDER OUTER PRIMARY REFERENCES RETURNING RIGHT
    SELECT SET TABLE THEN TO TRANSACTION UNION UNIQUE UPDATE USING VALUES WHEN WHERE WITH""".split()  # noqa: SIM905
)
_SAMPLED_ROWS = 1000
_MAX_LISTED = 5
_MAX_LISTED_CHARS = 24


def quote_name(name: str) -> str:
    """The name as SQL writes it: bare where SQLite takes it so, in double quotes otherwise."""
    if _PLAIN_NAME.fullmatch(name) and name.upper() not in _KEYWORDS:
        return name
    return '"' + name.replace('"', '""') + '"'


def schema_prompt(connection: sqlite3.Connection) -> str:
    """The tables and views of `connection`'s main database, one line each, in the order they were created.

    SQLite's own tables are left out, and so are views over something that is gone; a database without tables gives an
    empty string. Raises `sqlite3.Error` when the file is not a database.
    """
    relations = connection.execute(
        "SELECT name, type FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite$_%' ESCAPE '$'"
    ).fetchall()
    return "\n".join(
        f"{quote_name(name)}: {_columns(connection, name)}"
        for name, kind in relations
        if kind == "table" or _runs(connection, f"SELECT * FROM {quote_name(name)} LIMIT 0")
    )


def _runs(connection: sqlite3.Connection, sql: str) -> bool:
    try:
        connection.execute(sql)
    except sqlite3.OperationalError:
        return False
    return True


def _columns(connection: sqlite3.Connection, table: str) -> str:
    quoted = quote_name(table)
    columns = connection.execute(f"PRAGMA table_info({quoted})").fetchall()
    references = _foreign_keys(connection, table)
    key_columns = sum(1 for column in columns if column[5])
    described = []
    for _, name, declared, _, _, key in columns:
        kind, values = _kind_and_values(connection, quoted, quote_name(name), declared)
        text = f"{quote_name(name)} {kind}"
        if key and key_columns == 1:
            text += " key"
        if name.lower() in references:
            text += f" -> {references[name.lower()]}"
        elif values:
            text += f" [{'|'.join(values)}]"
        described.append(text)
    return ", ".join(described)


def _foreign_keys(connection: sqlite3.Connection, table: str) -> dict[str, str]:
    """`table.column` that each foreign-key column of one column points to, by lower-cased column name."""
    rows = connection.execute(f"PRAGMA foreign_key_list({quote_name(table)})").fetchall()
    widths: dict[int, int] = {}
    for row in rows:
        widths[row[0]] = widths.get(row[0], 0) + 1
    references = {}
    for constraint, _, target, column, target_column, *_ in rows:
        if widths[constraint] > 1:
            continue
        if target_column is None:  # "REFERENCES table" alone means that table's primary key
            target_column = _primary_key(connection, target)
        if target_column is not None:
            references[column.lower()] = f"{quote_name(target)}.{quote_name(target_column)}"
    return references


def _primary_key(connection: sqlite3.Connection, table: str) -> str | None:
    columns = connection.execute(f"PRAGMA table_info({quote_name(table)})").fetchall()
    names = [column[1] for column in columns if column[5]]
    return names[0] if len(names) == 1 else None


def _kind_and_values(connection: sqlite3.Connection, table: str, column: str, declared: str) -> tuple[str, list[str]]:
    """The column's type in one word, by SQLite's affinity rules, and its values where it is text of few values."""
    declared = (declared or "").upper()
    if "BOOL" in declared:
        return "bool", []
    if "DATE" in declared or "TIME" in declared:
        return "date", []
    if "INT" in declared:
        return "int", []
    if any(part in declared for part in ("REAL", "FLOA", "DOUB", "NUM", "DEC")):
        return "real", []
    if "BLOB" in declared:
        return "blob", []
    return _text_kind(connection, table, column)


def _text_kind(connection: sqlite3.Connection, table: str, column: str) -> tuple[str, list[str]]:
    """Looks at the first rows of a column declared as text, or not at all, for what it really holds."""
    rows = connection.execute(f"SELECT {column} FROM {table} LIMIT {_SAMPLED_ROWS}").fetchall()
    values = [row[0] for row in rows if row[0] is not None]
    if not values:
        return "text", []
    if all(isinstance(value, int) for value in values):
        return "int", []
    if all(isinstance(value, int | float) for value in values):
        return "real", []
    if all(isinstance(value, bytes) for value in values):
        return "blob", []
    if all(isinstance(value, str) and _DATE.match(value) for value in values):
        return "date", []
    distinct = list(dict.fromkeys(values))
    listable = all(isinstance(v, str) and 0 < len(v) <= _MAX_LISTED_CHARS and v.isprintable() for v in distinct)
    # As many values as rows is a column of names, not of categories.
    if listable and len(distinct) <= _MAX_LISTED and len(values) >= 2 * len(distinct):
        return "text", sorted(distinct)
    return "text", []
