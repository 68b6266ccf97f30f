"""The demo database behind the page: what the default model writes about it is run, read-only.

The text-to-SQL model that ships is asked about a small database that ships, too. The page shows the rows that its SQL
gives. Whoever may ask the model may send any SQL here, so each statement is bounded in time and in rows, none can
write, and one at a time is run, off the event loop.
"""

import asyncio
import math
import sqlite3
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request

from lightvllm.errors import EngineOverloaded
from lightvllm.server.body import parse_body, read_body
from lightvllm.server.errors import documented
from lightvllm.server.protocol.base import RequestModel, parse_object
from lightvllm.sql import DEMO_QUESTIONS, QueryResult, build_demo_database, extract_sql, open_readonly, run_query
from lightvllm.sql.schema import schema_prompt

MAX_ROWS = 100
MAX_SECONDS = 1.0
MAX_WAITING = 8
MAX_SQL_CHARACTERS = 10_000
MAX_BODY_BYTES = 2**17
_MAX_CELL_CHARACTERS = 500
_MAX_EXACT_INT = 2**53  # JavaScript knows no larger one exactly

T = TypeVar("T")
Cell = str | int | float | None


class DemoSchema(BaseModel):
    """What the model is told of the database, as a system message, and what could be asked about it."""

    schema_prompt: str
    questions: list[str]


class DemoQuery(RequestModel):
    """SQL, as the model wrote it: code fences and a closing semicolon do no harm."""

    sql: Annotated[str, Field(min_length=1, max_length=MAX_SQL_CHARACTERS)]


_QUERY_SCHEMA = DemoQuery.model_json_schema()


class DemoRows(BaseModel):
    """The rows of a query; or the error, in SQLite's words."""

    sql: str
    columns: list[str]
    rows: list[list[Cell]]
    error: str | None
    truncated: bool
    seconds: float


class DemoDatabase:
    """The demo database in a temporary folder, made when it is first asked for and gone with this object."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="demo-sql")
        self._num_waiting = 0

    async def schema(self) -> str:
        """The database's schema as the model is told it."""
        return await self._in_turn(schema_prompt)

    async def run(self, sql: str) -> QueryResult:
        """See `lightvllm.sql.run_query`.

        Raises:
            EngineOverloaded: too many wait already.
        """
        return await self._in_turn(lambda connection: run_query(connection, sql, MAX_ROWS, MAX_SECONDS))

    async def _in_turn(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._num_waiting >= MAX_WAITING:
            raise EngineOverloaded(f"{self._num_waiting} statements wait for the demo database already", MAX_SECONDS)
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._with_connection, work)
        finally:
            self._num_waiting -= 1

    def _with_connection(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._folder is None:
            folder = tempfile.TemporaryDirectory(prefix="lightvllm-demo-")
            build_demo_database(Path(folder.name) / "demo.sqlite")
            self._folder = folder
        with closing(open_readonly(Path(self._folder.name) / "demo.sqlite")) as connection:
            return work(connection)


def demo_router() -> APIRouter:
    """`/demo/schema` and `/demo/sql`, to be served together with the default model only."""
    router = APIRouter(prefix="/demo", tags=["demo"])
    database = DemoDatabase()

    @router.get(
        "/schema", summary="The demo database that the default model can be asked about", responses=documented()
    )
    async def demo_schema() -> DemoSchema:
        return DemoSchema(schema_prompt=await database.schema(), questions=list(DEMO_QUESTIONS))

    @router.post(
        "/sql",
        summary="Run SQL on the demo database, read-only",
        responses=documented(400, 408, 413, 415),
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _QUERY_SCHEMA}}}},
    )
    async def demo_sql(request: Request) -> DemoRows:
        state = request.app.state
        body = await read_body(request, MAX_BODY_BYTES, state.config.client_timeout, state.bodies)
        query = await parse_body(body, partial(parse_object, DemoQuery))
        result = await database.run(extract_sql(query.sql))
        return DemoRows(
            sql=result.sql,
            columns=result.columns,
            rows=[[_cell(value) for value in row] for row in result.rows],
            error=result.error,
            truncated=result.truncated,
            seconds=result.seconds,
        )

    return router


def _cell(value: Any) -> Cell:
    """A value of SQLite's as JSON and JavaScript can carry it."""
    if isinstance(value, bytes):
        value = f"x'{value[:_MAX_CELL_CHARACTERS].hex()}'"
    if isinstance(value, str):
        return value if len(value) <= _MAX_CELL_CHARACTERS else value[:_MAX_CELL_CHARACTERS] + "…"
    if (isinstance(value, int) and abs(value) > _MAX_EXACT_INT) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        return str(value)
    return value
