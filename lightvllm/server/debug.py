"""The web page at `/`, and the stream of the engine's steps that it shows."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from importlib import resources
from typing import Annotated, Protocol

import msgspec
from fastapi import APIRouter, HTTPException, Query
from starlette.responses import Response

from lightvllm.engine.trace import StepTrace
from lightvllm.server.engine_events import EventMerger
from lightvllm.server.errors import documented, to_api_error
from lightvllm.server.generate.sse import EventStream

# The page loads nothing from elsewhere, runs no script but its own, and cannot be framed.
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Seconds between two signs of life where nothing happens: proxies cut connections that are silent for longer.
_KEEP_ALIVE = 15.0


class Watched(Protocol):
    """What can be watched: `lightvllm.engine.async_engine.AsyncEngine`."""

    def watch(self) -> AsyncGenerator[StepTrace, None]: ...


def page_router() -> APIRouter:
    """`/` and the page's files, which are read once."""
    router = APIRouter(include_in_schema=False)
    folder = resources.files("lightvllm.server") / "web"
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}

    def answer(name: str) -> Response:
        suffix = name[name.rfind(".") :]
        if name not in files or suffix not in _MEDIA_TYPES:
            raise HTTPException(404, f"the page has no file {name!r}")
        return Response(files[name], headers={**PAGE_HEADERS, "content-type": _MEDIA_TYPES[suffix]})

    @router.get("/")
    async def page() -> Response:
        return answer("index.html")

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        return answer(name)

    return router


def engine_router(engine: Watched, client_timeout: float) -> APIRouter:
    """`/debug/engine`.

    Args:
        client_timeout: seconds in which a client must read what it is sent.
    """
    router = APIRouter()

    @router.get(
        "/debug/engine",
        summary="The engine's steps as they happen",
        tags=["debug"],
        response_class=EventStream,
        responses=documented(400),
    )
    async def debug_engine(
        interval: Annotated[
            float, Query(ge=0, le=10, description="least seconds between two events; 0 gives each step an event")
        ] = 0.03,
    ) -> Response:
        """Server-sent events, each the steps since the one before: see docs/engine-events.md."""
        return EventStream(engine_events(engine, interval), _describe_error, client_timeout)

    return router


async def engine_events(engine: Watched, interval: float) -> AsyncGenerator[bytes, None]:
    """The events of one reader, as server-sent events.

    The traces are taken in by a task of their own: a reader that is slow gets more of them in one event, and never
    holds up those who watch, too. With an interval of 0 nothing is merged: the task waits until each is taken.
    """
    merger, news, taken = EventMerger(), asyncio.Event(), asyncio.Event()

    async def read() -> None:
        async with aclosing(engine.watch()) as traces:
            async for trace in traces:
                merger.add(trace)
                taken.clear()
                news.set()
                if interval == 0:
                    await taken.wait()

    reader = asyncio.ensure_future(read())
    reader.add_done_callback(lambda _: news.set())
    try:
        yield b": watching\n\n"
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), _KEEP_ALIVE)
            news.clear()
            event = merger.take()
            taken.set()
            if event is not None:
                yield b"data: " + msgspec.json.encode(event) + b"\n\n"
                await asyncio.sleep(interval)
            elif reader.done():
                reader.result()  # raises what ended it
                return
            else:
                yield b": nothing new\n\n"
            if reader.done():
                news.set()
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


def _describe_error(error: Exception) -> bytes:
    return msgspec.json.encode(to_api_error(error).body())
