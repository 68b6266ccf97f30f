"""Running SQL somebody else wrote, here a language model, without letting it change anything.

Four locks, any of which would do: the file is opened read-only, `query_only` is set, an authorizer refuses every action
but reading, and a progress handler ends statements that run too long.
"""

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

_ALLOWED_ACTIONS = frozenset(
    (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
)
# Functions that reach outside the database.
_REFUSED_FUNCTIONS = frozenset(("load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"))
_MAX_VALUE_BYTES = 10_000_000
_MAX_RESULT_BYTES = 50_000_000
_CHECK_EVERY = 1000  # virtual-machine instructions between two looks at the clock


@dataclass
class QueryResult:
    """What came of a statement: columns and rows, or the error in SQLite's words, never both.

    `truncated` says that rows were left out, for their number or their size; `seconds` is how long it ran.
    """

    sql: str
    columns: list[str] = field(default_factory=list)
    rows: list[tuple] = field(default_factory=list)
    error: str | None = None
    truncated: bool = False
    seconds: float = 0.0


def open_readonly(path: str | Path) -> sqlite3.Connection:
    """A connection to a SQLite file that can only read it, and only it.

    Raises:
        ValueError: no such file, or it is not a SQLite database.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"db: no file {str(path)!r}; give the path of a SQLite database")
    # Autocommit: Python's own transaction handling would try to BEGIN, which the authorizer refuses.
    connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("SELECT name FROM sqlite_schema LIMIT 1").fetchall()
    except sqlite3.Error as error:
        connection.close()
        raise ValueError(f"db: {str(path)!r} cannot be read as a SQLite database ({error})") from None
    return connection


def run_query(
    connection: sqlite3.Connection, sql: str, max_rows: int = 1000, timeout_seconds: float = 5.0
) -> QueryResult:
    """Runs one statement read-only; whatever goes wrong comes back as the result's `error`.

    The locks hold while the statement runs and are lifted afterwards, so that the connection's owner may still use it.
    A statement over `timeout_seconds` is interrupted. Raises ValueError for a limit that is not positive.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows: is {max_rows}, expected at least 1")
    if timeout_seconds <= 0:
        raise ValueError(f"timeout_seconds: is {timeout_seconds}, expected more than 0")
    result = QueryResult(sql)
    started = time.monotonic()
    limits = _lock(connection, started + timeout_seconds)
    try:
        with closing(connection.execute(sql)) as cursor:
            if cursor.description is None:
                result.error = "not a query: the statement gives no rows"
            else:
                result.columns = [column[0] for column in cursor.description]
                result.rows, result.truncated = _fetch(cursor, max_rows)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
        expired = time.monotonic() - started >= timeout_seconds
        result.error = f"stopped after {timeout_seconds:g} s" if expired else str(error) or type(error).__name__
        result.columns, result.rows = [], []
    finally:
        _unlock(connection, limits)
    result.seconds = time.monotonic() - started
    return result


def _fetch(cursor: sqlite3.Cursor, max_rows: int) -> tuple[list[tuple], bool]:
    """(the rows up to the limits on their number and size, whether there were more)."""
    rows: list[tuple] = []
    size = 0
    for row in cursor:
        if len(rows) == max_rows or size > _MAX_RESULT_BYTES:
            return rows, True
        rows.append(row)
        size += sum(len(value) for value in row if isinstance(value, str | bytes))
    return rows, False


def _lock(connection: sqlite3.Connection, deadline: float) -> dict[int, int]:
    """Sets the locks; gives the limits as they were."""
    connection.execute("PRAGMA query_only = ON")
    wanted = {sqlite3.SQLITE_LIMIT_LENGTH: _MAX_VALUE_BYTES, sqlite3.SQLITE_LIMIT_ATTACHED: 0}
    before = {category: connection.setlimit(category, limit) for category, limit in wanted.items()}
    connection.set_progress_handler(lambda: int(time.monotonic() > deadline), _CHECK_EVERY)
    connection.set_authorizer(_authorize)
    return before


def _unlock(connection: sqlite3.Connection, limits: dict[int, int]) -> None:
    connection.set_authorizer(None)
    connection.set_progress_handler(None, 0)
    for category, limit in limits.items():
        connection.setlimit(category, limit)
    connection.execute("PRAGMA query_only = OFF")


def _authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    """SQLite asks this of every action while it compiles a statement; for a function, `second` is its name."""
    if action not in _ALLOWED_ACTIONS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _REFUSED_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK
