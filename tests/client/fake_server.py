"""A small server in a thread that speaks enough of OpenAI's protocol, and misbehaves on demand."""

import asyncio
import contextlib
import json
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MODEL = "fake-model"
DONE = b"data: [DONE]\n\n"


@dataclass
class Answer:
    """What to send instead of a proper answer.

    Attributes:
        chunks: pieces of the body, written one after the other.
        pause: seconds before each of them.
        breaks_off: close the connection without having ended the body.
        has_no_answer: close it without any answer.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    pause: float = 0.0
    breaks_off: bool = False
    has_no_answer: bool = False


@dataclass
class Received:
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def error(message: str, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": message, "type": None, "param": None, "code": None} | fields}).encode()


class FakeServer:
    """Answers with what is in `script` first, then properly.

    Attributes:
        requests: what came, in order; /health is not among them.
        script: answers to the next requests but those for /health and /v1/models.
        token_seconds: from token to token.
        num_open: generating requests at this moment, and at most so far (`peak_open`).
        gone: set when a client went away in the middle of an answer.
    """

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.script: deque[Answer] = deque()
        self.is_healthy = True
        self.sends_usage = True
        self.token_seconds = 0.0
        self.num_open = self.peak_open = 0
        self.gone = threading.Event()
        self.url = ""

    async def serve(self, is_up: threading.Event, until: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        is_up.set()
        await until.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await self._receive(reader)) is not None:
                if not await self._respond(request, writer):
                    break
        except (ConnectionError, asyncio.CancelledError):
            self.gone.set()
        finally:
            writer.close()

    async def _receive(self, reader: asyncio.StreamReader) -> Received | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Received(method, path, headers, json.loads(body) if body else {})

    async def _respond(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection can be used again."""
        if request.path == "/health":
            return await self._send(writer, Answer(200 if self.is_healthy else 503, chunks=[b""]))
        self.requests.append(request)
        if request.path == "/v1/models":
            return await self._send_json(writer, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        if self.script:
            return await self._send(writer, self.script.popleft())
        if request.path == "/tokenize":
            return await self._send_json(writer, {"count": 2, "tokens": [5, 6], "max_model_len": 100})
        if request.path == "/detokenize":
            return await self._send_json(writer, {"prompt": " ".join(map(str, request.body["tokens"]))})
        self.num_open += 1
        self.peak_open = max(self.peak_open, self.num_open)
        try:
            return await self._generate(writer, request)
        finally:
            self.num_open -= 1

    async def _generate(self, writer: asyncio.StreamWriter, request: Received) -> bool:
        is_chat = request.path == "/v1/chat/completions"
        num_tokens = request.body.get("max_tokens", 3)
        words = [f"w{i} " for i in range(num_tokens)]
        usage = {"prompt_tokens": 7, "completion_tokens": num_tokens, "total_tokens": 7 + num_tokens}
        head = {"id": "r-1", "object": "o", "created": 1, "model": request.body["model"]}
        if not request.body.get("stream"):
            text = "".join(words)
            choice = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
            choices = [{"index": 0, "finish_reason": "length"} | choice]
            return await self._send_json(writer, head | {"choices": choices, "usage": usage})
        events = [{"delta": {"role": "assistant", "content": ""}}] if is_chat else []
        events += [{"delta": {"content": word}} if is_chat else {"text": word} for word in words]
        events += [{"delta": {}, "finish_reason": "length"} if is_chat else {"text": "", "finish_reason": "length"}]
        chunks = [event(head | {"choices": [{"index": 0, "finish_reason": None} | one]}) for one in events]
        if self.sends_usage and request.body.get("stream_options", {}).get("include_usage"):
            chunks.append(event(head | {"choices": [], "usage": usage}))
        return await self._send(writer, Answer(chunks=[*chunks, DONE], pause=self.token_seconds))

    async def _send_json(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
        return await self._send(writer, Answer(chunks=[json.dumps(body).encode()]))

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer) -> bool:
        if answer.has_no_answer:
            return False
        headers = {"Transfer-Encoding": "chunked"} | answer.headers
        lines = [f"HTTP/1.1 {answer.status} X", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for chunk in answer.chunks:
            if answer.pause:
                await writer.drain()
                await asyncio.sleep(answer.pause)
            if chunk:
                writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
        if answer.breaks_off:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


@contextlib.contextmanager
def running() -> Iterator[FakeServer]:
    """A server that answers until the context is left."""
    server, is_up = FakeServer(), threading.Event()
    loop, until = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=[server.serve(is_up, until)])
    thread.start()
    try:
        assert is_up.wait(10)
        yield server
    finally:
        loop.call_soon_threadsafe(until.set)
        thread.join(10)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
