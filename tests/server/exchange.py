"""One request to an application, spoken in ASGI: with every message in sight, and clients that behave badly."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message

from lightvllm.config import ServerConfig
from lightvllm.server.app import build_app
from tests.server.fakes import FakeEngine

MODEL = "fake-model"


@dataclass
class Exchange:
    """What came back."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    is_complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of the server-sent events, all of which must be whole; "[DONE]" must be the last and is left out."""
        assert self.headers["content-type"].startswith("text/event-stream"), self.body
        blocks = self.body.decode("utf-8").split("\n\n")
        assert blocks.pop() == ""
        assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
        data = [block.removeprefix("data: ") for block in blocks]
        assert data.pop() == "[DONE]"
        return [json.loads(one) for one in data]


async def exchange(
    app: ASGIApp,
    path: str,
    body: dict[str, Any],
    *,
    headers: dict[str, str] | None = None,
    leave: asyncio.Event | None = None,
    read: Callable[[Message], Awaitable[None]] | None = None,
) -> Exchange:
    """POST a body, and read the answer to its end.

    Args:
        leave: when it is set the client closes the connection.
        read: awaited for each piece of the answer, before the server may send the next: a slow reader waits here.
    """
    result = Exchange()
    sent = json.dumps(body).encode()
    is_asked = False
    leave = leave or asyncio.Event()

    async def receive() -> Message:
        nonlocal is_asked
        if not is_asked:
            is_asked = True
            return {"type": "http.request", "body": sent, "more_body": False}
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            result.status = message["status"]
            result.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        if read is not None:
            await read(message)
        result.pieces.append(message["body"])
        result.is_complete = not message.get("more_body", False)

    given = {"content-type": "application/json", "host": "test", **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 12345),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return result


class Api:
    """A server with a fake engine: each call is a request and its answer, after which the engine must be idle.

    Args:
        options: fields of `ServerConfig`.
    """

    def __init__(self, engine: FakeEngine, **options: Any) -> None:
        self.engine = engine
        self.app = build_app(engine, ServerConfig(**options), model_names=[MODEL])  # type: ignore[arg-type]

    def post(self, path: str, headers: dict[str, str] | None = None, **body: Any) -> Exchange:
        """Any answer."""

        async def run() -> Exchange:
            async with asyncio.timeout(20):
                result = await exchange(self.app, path, body, headers=headers)
            await asyncio.sleep(0.001)  # what was cancelled ends now
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert not others, f"tasks that outlive the request: {others}"
            return result

        result = asyncio.run(run())
        assert result.is_complete
        assert not self.engine.running
        return result

    def complete(self, **body: Any) -> Any:
        """The answer of /v1/completions, streamed or not."""
        return self._answer("/v1/completions", body)

    def chat(self, content: str = "Hi", **body: Any) -> Any:
        """The answer of /v1/chat/completions, streamed or not, to a message of the user's."""
        return self._answer("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **body})

    def refused(self, path: str, **body: Any) -> tuple[int, str | None, str]:
        """Status, param and message of an error."""
        result = self.post(path, **body)
        error = result.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert result.status is not None
        return result.status, error["param"], error["message"]

    def _answer(self, path: str, body: dict[str, Any]) -> Any:
        result = self.post(path, **body)
        assert result.status == 200, result.body
        return result.events if body.get("stream") else result.json
