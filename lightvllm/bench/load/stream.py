"""One streamed request, timed. Speaks HTTP itself, as a client's own work must not look like the server's.

asyncio's streams with h11 take about 60 us of processor time a token, httpx 160 us: with 64 streams of 50 tokens a
second that is a fifth of a core or half of one, taken from a server that runs on the same machine.
"""

import asyncio
import ssl
import time
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

import h11
import msgspec

from lightvllm.client.errors import APIConnectionError, APIError, error_of_object, error_of_response
from lightvllm.client.sse import EventDecoder

READ_BYTES = 1 << 16


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_CHUNK = msgspec.json.Decoder(_Chunk)


@dataclass(slots=True)
class Outcome:
    """What became of a request. Times are in seconds.

    Attributes:
        start: when it was sent, after the start of the run; the connection was open by then.
        queue_time: for how long before that it was held back, by the limit of concurrent requests.
        ttft: from sending it to its first piece of output.
        itls: from each piece of output to the next. Servers may put several tokens into a piece.
        latency: from sending it to its last piece.
        prompt_tokens, output_tokens: as the server counted, None if it did not say.
        text: all output.
        error: why it failed, None if it did not.
    """

    start: float = 0.0
    queue_time: float = 0.0
    ttft: float = 0.0
    itls: list[float] = field(default_factory=list)
    latency: float = 0.0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    text: str = ""
    error: str | None = None


class Target:
    """An endpoint of a server.

    Args:
        url: the endpoint's whole address.
        headers: for every request.
        timeout: the longest that a request may take, in seconds.

    Raises:
        ValueError: the address is none.
    """

    def __init__(self, url: str, headers: dict[str, str], timeout: float) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url: {url!r} is no address of a server, expected one such as http://127.0.0.1:8000")
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self.path = parts.path + (f"?{parts.query}" if parts.query else "")
        standard = {"Host": parts.netloc.rpartition("@")[2], "Content-Type": "application/json", "Connection": "close"}
        self.headers = standard | headers
        self.timeout = timeout


async def send(target: Target, body: bytes, run_start: float) -> Outcome:
    """Send a request over a connection of its own and read its stream to the end. Raises nothing: see `Outcome.error`.

    Args:
        run_start: the run's, by `time.perf_counter`.
    """
    outcome = Outcome()
    try:
        async with asyncio.timeout(target.timeout):
            reader, writer = await asyncio.open_connection(target.host, target.port, ssl=target.ssl)
            try:
                await _exchange(target, body, reader, writer, outcome, run_start)
            finally:
                writer.close()
    except TimeoutError:
        outcome.error = f"it took longer than {target.timeout:g} s"
    except (OSError, h11.RemoteProtocolError) as error:
        outcome.error = f"the connection failed: {error}"
    except APIError as error:
        outcome.error = str(error)
    return outcome


async def _exchange(
    target: Target,
    body: bytes,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    outcome: Outcome,
    run_start: float,
) -> None:
    connection = h11.Connection(h11.CLIENT)
    headers = [*target.headers.items(), ("Content-Length", str(len(body)))]
    parts = [h11.Request(method="POST", target=target.path, headers=headers), h11.Data(data=body), h11.EndOfMessage()]
    request = b"".join(connection.send(part) or b"" for part in parts)
    now = time.perf_counter()
    recorder = _Recorder(outcome, now)
    outcome.start = now - run_start
    writer.write(request)
    status, refusal = 0, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(READ_BYTES))
            now = time.perf_counter()
        elif isinstance(event, h11.Data):
            if status == 200:
                recorder.take(bytes(event.data), now)
            else:
                refusal += event.data
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.EndOfMessage):
            break
    if status != 200:
        raise error_of_response(status, refusal, None)
    recorder.end()


class _Recorder:
    """Fills in the outcome as the stream comes."""

    def __init__(self, outcome: Outcome, start: float) -> None:
        self.outcome = outcome
        self.start = start
        self.last = start  # when the last piece came
        self.texts: list[str] = []
        self.has_output = self.is_done = False
        self.events = EventDecoder()

    def take(self, content: bytes, now: float) -> None:
        """Bytes that came at this time."""
        for event in self.events.feed(content):
            if event == b"[DONE]":
                self.is_done = True
                return
            try:
                chunk = _CHUNK.decode(event)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise APIConnectionError(f"the stream is not as expected: {error}") from None
            if chunk.error is not None:
                raise error_of_object(chunk.error)
            if chunk.usage is not None:
                self.outcome.prompt_tokens = chunk.usage.prompt_tokens
                self.outcome.output_tokens = chunk.usage.completion_tokens
            if chunk.choices:
                self._take_choice(chunk.choices[0], now)

    def _take_choice(self, choice: _Choice, now: float) -> None:
        """Only what carries output counts: neither the role that begins a chat, nor the bare reason of its end."""
        delta = choice.delta or _Delta(content=choice.text)
        text = (delta.reasoning or delta.reasoning_content or "") + (delta.content or "")
        self.outcome.latency = now - self.start
        if not text and not delta.tool_calls and not choice.token_ids:
            return
        if text:
            self.texts.append(text)
        if self.has_output:
            self.outcome.itls.append(now - self.last)
        else:
            self.outcome.ttft = now - self.start
            self.has_output = True
        self.last = now

    def end(self) -> None:
        """The server sends no more."""
        if not self.is_done:
            raise APIConnectionError("the stream ended before the server said [DONE]")
        if not self.has_output:  # tokens without text, such as special ones: the end is the first that shows
            self.outcome.ttft = self.outcome.latency
        self.outcome.text = "".join(self.texts)
