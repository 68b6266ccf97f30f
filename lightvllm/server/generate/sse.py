"""Answers over server-sent events, and clients that go away.

A connection is watched while there is work for it: when the client closes it, the work is cancelled at once, and what
it holds in the engine is freed by its own `finally`.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

logger = logging.getLogger(__name__)

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects.

    Args:
        receive: of the connection, whose request has been read to its end.

    Raises:
        ClientDisconnect: it did.
    """
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        raise ClientDisconnect
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response whose events are sent as they come.

    The status is not sent before the first events are there: an error until then is an ordinary one, raised to the
    application. A later one becomes an event of its own.

    Args:
        events: one or several whole events at a time, without the final `[DONE]`. It is closed when the client goes
            away, or takes longer than `client_timeout` to read.
        describe_error: the JSON of an error.
        client_timeout: seconds.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        describe_error: Callable[[Exception], bytes],
        client_timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.events = events
        self.describe_error = describe_error
        self.client_timeout = client_timeout
        self.status_code = 200
        self.background = None
        # Proxies must neither store the stream nor collect it before they pass it on.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send_events(send))
        except ClientDisconnect:
            logger.debug("a client went away before the end of its stream")

    async def _send_events(self, send: Send) -> None:
        async with aclosing(self.events) as events:
            first = await anext(events, b"")
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                await self._write(send, first)
                async for data in events:
                    await self._write(send, data)
            except ClientDisconnect:
                logger.warning("a client that read nothing for %g s was dropped", self.client_timeout)
                raise
            except Exception as error:
                await self._write(send, b"data: " + self.describe_error(error) + b"\n\n")
            await self._write(send, DONE, more=False)

    async def _write(self, send: Send, data: bytes, more: bool = True) -> None:
        """Send, or wait until the client has read enough of what was sent before."""
        try:
            async with asyncio.timeout(self.client_timeout):
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except (TimeoutError, OSError):  # OSError: some servers say so when the connection is closed
            raise ClientDisconnect from None
