"""Events as they come, clients that go away or do not read, and errors before and after the first byte."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from lightvllm.config import ServerConfig
from lightvllm.engine.streams import RequestFailed
from lightvllm.server.app import build_app
from lightvllm.server.generate.sse import EventStream, while_connected
from tests.server.exchange import MODEL, Exchange, exchange
from tests.server.fakes import FOREVER, FakeEngine, Pace

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
ENDPOINTS = pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", {"prompt": "Hi", "max_tokens": 4000}), ("/v1/chat/completions", CHAT)]
)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(20):
            return await work

    return asyncio.run(bounded())


class Source:
    """Events, and whether they were closed."""

    def __init__(self, *items: bytes | Exception, endless: bool = False) -> None:
        self.items = items
        self.endless = endless
        self.is_closed = False
        self.num_taken = 0

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            for item in self.items:
                await asyncio.sleep(0)
                if isinstance(item, Exception):
                    raise item
                self.num_taken += 1
                yield item
            while self.endless:
                await asyncio.sleep(0.001)
                self.num_taken += 1
                yield b"data: x\n\n"
        finally:
            self.is_closed = True


def stream_app(source: Source, client_timeout: float = 5.0) -> Any:
    """An application that answers everything with the events."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # the request
        response = EventStream(source.events(), lambda error: str(error).encode(), client_timeout, {"x-more": "1"})
        await response(scope, receive, send)

    return app


def test_events_are_sent_as_they_come() -> None:
    source = Source(b"data: 1\n\n", b"data: 2\n\ndata: 3\n\n")
    result = run(exchange(stream_app(source), "/", {}))
    assert result.status == 200
    assert result.pieces == [b"data: 1\n\n", b"data: 2\n\ndata: 3\n\n", b"data: [DONE]\n\n"]
    assert result.is_complete
    assert source.is_closed
    headers = result.headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (headers["cache-control"], headers["x-accel-buffering"], headers["x-more"]) == ("no-cache", "no", "1")
    assert "content-length" not in headers


def test_no_events_at_all_are_a_stream_all_the_same() -> None:
    result = run(exchange(stream_app(Source()), "/", {}))
    assert result.body == b"data: [DONE]\n\n"


def test_an_error_before_the_first_event_is_raised_and_nothing_is_sent() -> None:
    source = Source(ValueError("no"))
    started = []

    async def send(message: Message) -> None:
        started.append(message)

    async def receive() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    response = EventStream(source.events(), lambda error: b"", 5.0)
    with pytest.raises(ValueError, match="no"):
        run(response({"type": "http"}, receive, send))
    assert not started
    assert source.is_closed


def test_a_later_error_is_an_event() -> None:
    source = Source(b"data: 1\n\n", ValueError("no"))
    result = run(exchange(stream_app(source), "/", {}))
    assert result.body == b"data: 1\n\ndata: no\n\ndata: [DONE]\n\n"
    assert result.is_complete


def test_when_the_client_leaves_the_events_are_closed_at_once() -> None:
    source = Source(endless=True)

    async def play() -> Exchange:
        leave = asyncio.Event()

        async def read(message: Message) -> None:
            if source.num_taken == 5:
                leave.set()

        return await exchange(stream_app(source), "/", {}, leave=leave, read=read)

    result = run(play())
    assert source.is_closed
    assert source.num_taken <= 7
    assert not result.is_complete


def test_a_client_that_does_not_read_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    source = Source(endless=True)

    async def play() -> Exchange:
        async def read(message: Message) -> None:
            if source.num_taken == 3:
                await asyncio.sleep(60)

        return await exchange(stream_app(source, client_timeout=0.05), "/", {}, read=read)

    with caplog.at_level(logging.WARNING):
        start = time.monotonic()
        result = run(play())
    assert time.monotonic() - start < 5
    assert source.is_closed
    assert source.num_taken == 3
    assert not result.is_complete
    assert "read nothing for 0.05 s" in caplog.text


def test_a_slow_client_that_does_read_is_served() -> None:
    source = Source(*[b"data: x\n\n"] * 5)

    async def play() -> Exchange:
        async def read(message: Message) -> None:
            await asyncio.sleep(0.03)

        return await exchange(stream_app(source, client_timeout=0.1), "/", {}, read=read)

    assert run(play()).body == b"data: x\n\n" * 5 + b"data: [DONE]\n\n"


def test_the_work_is_done_while_the_client_is_there() -> None:
    async def forever() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    async def work() -> int:
        await asyncio.sleep(0.001)
        return 7

    async def fail() -> int:
        raise KeyError("x")

    assert run(while_connected(forever, work())) == 7
    with pytest.raises(KeyError):
        run(while_connected(forever, fail()))


def test_the_work_is_cancelled_when_the_client_goes_or_when_it_is_itself() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(asyncio.current_task())

    async def gone() -> Message:
        await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def stays() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    async def cancelled() -> None:
        task = asyncio.ensure_future(while_connected(stays, work()))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with pytest.raises(ClientDisconnect):
        run(while_connected(gone, work()))
    assert len(ended) == 1
    run(cancelled())
    assert len(ended) == 2


# ---- the two endpoints


def endless_engine(**options: Any) -> FakeEngine:
    return FakeEngine([40, 41, FOREVER], pace=Pace(seconds_per_step=0.002), **options)


@ENDPOINTS
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_request(path: str, body: dict[str, Any], stream: bool) -> None:
    engine = endless_engine()

    async def play() -> tuple[Exchange, float]:
        leave = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, leave.set)
        app = build_app(engine, ServerConfig(), model_names=[MODEL])
        result = await exchange(app, path, {**body, "stream": stream}, leave=leave)
        await asyncio.sleep(0.001)
        assert asyncio.all_tasks() - {asyncio.current_task()} <= set(engine.running.values())
        return result, time.monotonic()

    start = time.monotonic()
    result, end = run(play())
    assert end - start < 1
    assert len(engine.aborted) == 1
    assert not engine.running
    assert not result.is_complete
    assert (result.status == 200) is stream


def test_a_client_that_leaves_frees_all_its_prompts() -> None:
    engine = endless_engine()

    async def play() -> None:
        leave = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, leave.set)
        app = build_app(engine, ServerConfig(), model_names=[MODEL])
        body = {"prompt": ["a", "b", "c"], "max_tokens": 4000, "stream": True}
        await exchange(app, "/v1/completions", body, leave=leave)

    run(play())
    assert len(engine.aborted) == 3


@ENDPOINTS
def test_a_client_that_does_not_read_frees_its_request(path: str, body: dict[str, Any]) -> None:
    engine = endless_engine()

    async def play() -> Exchange:
        async def read(message: Message) -> None:
            await asyncio.sleep(60)

        app = build_app(engine, ServerConfig(client_timeout=0.1), model_names=[MODEL])
        return await exchange(app, path, {**body, "stream": True}, read=read)

    run(play())
    assert len(engine.aborted) == 1
    assert not engine.running


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Hi", "max_tokens": 100}),
        ("/v1/completions", {"prompt": ["a", "b", "c"], "max_tokens": 100}),
        ("/v1/chat/completions", CHAT),
    ],
    ids=["prompt", "prompts", "chat"],
)
def test_a_slow_reader_gets_everything_in_fewer_pieces(path: str, body: dict[str, Any]) -> None:
    engine = FakeEngine("one two three four five six seven eight nine ten", pace=Pace(seconds_per_step=0.001))

    async def play() -> Exchange:
        async def read(message: Message) -> None:
            await asyncio.sleep(0.02)

        app = build_app(engine, ServerConfig(), model_names=[MODEL])
        return await exchange(app, path, {**body, "stream": True}, read=read)

    texts: dict[int, list[str]] = {}
    for choice in (choice for event in run(play()).events for choice in event["choices"]):
        text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
        texts.setdefault(choice["index"], []).append(text)
    assert len(texts) == len(engine.submitted)
    for pieces in texts.values():
        assert "".join(pieces) == engine.reply
        assert len([piece for piece in pieces if piece]) < len(engine.tokenizer.encode(str(engine.reply))) / 2
    assert not engine.aborted


@ENDPOINTS
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_fails_at_once_is_an_ordinary_error(path: str, body: dict[str, Any], stream: bool) -> None:
    engine = FakeEngine(pace=Pace(fail_after=0))

    async def play() -> Exchange:
        app = build_app(engine, ServerConfig(), model_names=[MODEL])
        return await exchange(app, path, {**body, "stream": stream})

    result = run(play())
    assert result.status == 500
    assert "failed three times" in result.json["error"]["message"]


@ENDPOINTS
def test_a_request_that_fails_later_ends_its_stream_with_an_error(path: str, body: dict[str, Any]) -> None:
    engine = FakeEngine("a b c d e", pace=Pace(fail_after=3))

    async def play() -> Exchange:
        app = build_app(engine, ServerConfig(), model_names=[MODEL])
        return await exchange(app, path, {**body, "stream": True, "stream_options": {"include_usage": True}})

    result = run(play())
    assert result.status == 200
    *chunks, last = result.events
    assert chunks
    assert all(chunk["choices"] for chunk in chunks)
    assert last.keys() == {"error"}
    assert "failed three times" in last["error"]["message"]
    assert last["error"].keys() == {"message", "type", "param", "code"}


@ENDPOINTS
def test_a_deadline_is_a_504_or_an_error_event(path: str, body: dict[str, Any]) -> None:
    async def play(pace: Pace, stream: bool) -> Exchange:
        engine = FakeEngine([40, FOREVER], pace=pace)
        app = build_app(engine, ServerConfig(), model_names=[MODEL])
        result = await exchange(app, path, {**body, "stream": stream, "timeout": 0.05})
        assert engine.submitted[0].timeout == 0.05
        return result

    never = Pace(seconds_per_step=0.01, all_at_once=True)
    never.failure = RequestFailed("deadline", "timeout: late")
    never.fail_after = 0
    assert run(play(never, stream=True)).status == 504
    slow = Pace(seconds_per_step=0.02)
    assert run(play(slow, stream=False)).status == 504
    result = run(play(slow, stream=True))
    assert result.status == 200
    assert "0.05 s" in result.events[-1]["error"]["message"]


def test_one_prompt_that_fails_aborts_the_others() -> None:
    for stream in (False, True):
        engine = FakeEngine(
            lambda text, index: [40] if text == "bad" else [40, FOREVER], pace=Pace(seconds_per_step=0.002)
        )
        make_steps = engine._make_steps

        async def fail_bad(state: Any, stream: Any, make_steps: Any = make_steps) -> None:
            if state.prompt.text == "bad":
                await asyncio.sleep(0.02)
                stream.fail(RequestFailed("engine", "bad prompt"))
            else:
                await make_steps(state, stream)

        engine._make_steps = fail_bad  # type: ignore[method-assign]

        async def play(engine: FakeEngine = engine, stream: bool = stream) -> Exchange:
            app = build_app(engine, ServerConfig(), model_names=[MODEL])
            body = {"prompt": ["a", "bad", "c"], "max_tokens": 4000, "stream": stream}
            return await exchange(app, "/v1/completions", body)

        result = run(play())
        error = result.events[-1]["error"] if stream else result.json["error"]
        assert "bad prompt" in error["message"]
        assert sorted(engine.aborted)[0][-1] in "02"
        assert {one[-2:] for one in engine.aborted} >= {"-0", "-2"}
