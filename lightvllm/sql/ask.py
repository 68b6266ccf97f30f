"""From a question to rows: asks whatever turns chat messages into text, then runs the answer read-only."""

import sqlite3
from collections.abc import Callable

from lightvllm.sql.execute import QueryResult, run_query
from lightvllm.sql.prompt import Message, build_messages
from lightvllm.sql.schema import schema_prompt

# Messages in, the model's text out.
Writer = Callable[[list[Message]], str]


def answer(connection: sqlite3.Connection, question: str, write: Writer, max_rows: int = 1000) -> QueryResult:
    """Asks `write` for SQL about the connection's database and runs it; what fails is in the result's `error`.

    Raises ValueError for an empty question or a database without tables.
    """
    schema = schema_prompt(connection)
    if not schema:
        raise ValueError("db: has no tables, so there is nothing to ask about")
    return run_query(connection, extract_sql(write(build_messages(schema, question))), max_rows)


def extract_sql(text: str) -> str:
    """The statement in a model's answer: without a code fence and a closing semicolon, which larger models like."""
    text = text.strip()
    if text.startswith("```"):
        text = text.split("\n", 1)[-1].rsplit("```", 1)[0]
    return text.strip().rstrip(";").strip()
