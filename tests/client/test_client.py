"""Both clients: the same tests run over the synchronous and the asynchronous one."""

import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lightvllm.client import APIConnectionError, APIError, AsyncClient, Client
from tests.client.fake_server import DONE, MODEL, Answer, FakeServer, error, event


class Driver:
    """One face for the two clients: the asynchronous one runs in a loop of its own."""

    def __init__(self, is_async: bool, url: str, **options: Any) -> None:
        self.runner = asyncio.Runner() if is_async else None
        self.client: Any = AsyncClient(url, **options) if is_async else Client(url, **options)

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        result = getattr(self.client, name)(*args, **options)
        return self.runner.run(result) if self.runner else result

    def stream(
        self, name: str, *args: Any, into: list[Any] | None = None, at_most: int = 10**6, **options: Any
    ) -> tuple[list[Any], Any]:
        """The deltas until there are `at_most`, in a new list or in `into`; and the stream."""
        deltas: list[Any] = [] if into is None else into
        if self.runner is None:
            with getattr(self.client, name)(*args, **options) as stream:
                deltas.extend(itertools.islice(stream, at_most))
            return deltas, stream

        async def run() -> Any:
            async with getattr(self.client, name)(*args, **options) as stream:
                async for delta in stream:
                    deltas.append(delta)
                    if len(deltas) == at_most:
                        break
            return stream

        return deltas, self.runner.run(run())

    def close(self) -> None:
        self.call("close")
        if self.runner:
            self.runner.close()


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def client(server: FakeServer, is_async: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.01)  # of the waiting time between two attempts
    driver = Driver(is_async, server.url, api_key="secret", timeout=5)
    yield driver
    driver.close()


def test_chat(client: Driver, server: FakeServer) -> None:
    answer = client.call("chat", "Hello", max_tokens=2, temperature=0.5)
    assert answer.text == "w0 w1 "
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 2)
    request = server.requests[-1]
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.body == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 2,
        "temperature": 0.5,
    }


def test_the_server_s_first_model_is_asked_for_once(client: Driver, server: FakeServer) -> None:
    client.call("complete", "a")
    client.call("complete", [1, 2], model="other")
    client.call("complete", "b")
    assert [r.path for r in server.requests] == ["/v1/models", *["/v1/completions"] * 3]
    assert [r.body.get("model") for r in server.requests[1:]] == [MODEL, "other", MODEL]
    assert server.requests[2].body["prompt"] == [1, 2]


def test_a_stream(client: Driver, server: FakeServer) -> None:
    deltas, stream = client.stream("stream_chat", [{"role": "user", "content": "Hi"}], max_tokens=3)
    assert [d.text for d in deltas] == ["", "w0 ", "w1 ", "w2 ", ""]
    assert deltas[0].delta.role == "assistant"
    assert deltas[-1].finish_reason == "length"
    assert stream.id == "r-1"
    assert stream.usage.completion_tokens == 3
    assert server.requests[-1].body["stream_options"] == {"include_usage": True}
    deltas, stream = client.stream(
        "stream_complete", "Hi", max_tokens=2, stream_options={"continuous_usage_stats": True}
    )
    assert [d.text for d in deltas] == ["w0 ", "w1 ", ""]
    assert server.requests[-1].body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def test_reasoning_and_tool_calls(client: Driver, server: FakeServer) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    pieces = [
        {"reasoning": "hm"},
        {"tool_calls": [call]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
    ]
    chunks = [event({"choices": [{"index": 1, "delta": piece}]}) for piece in pieces]
    server.script.append(Answer(chunks=[*chunks, DONE]))
    deltas, _ = client.stream("stream_chat", "Hi")
    assert [d.index for d in deltas] == [1, 1, 1]
    assert deltas[0].reasoning == "hm"
    assert deltas[1].delta.tool_calls[0].function.name == "f"
    assert deltas[2].delta.tool_calls[0].function.arguments == "{}"


def test_a_stream_in_bytes(client: Driver, server: FakeServer) -> None:
    stream = b": ping\r\n\r\n" + event({"choices": [{"index": 0, "text": "🙂"}]}).replace(b"\n", b"\r\n") + DONE
    stream = stream.replace(b"\\ud83d\\ude42", "🙂".encode())
    server.script.append(Answer(chunks=[stream[i : i + 1] for i in range(len(stream))]))
    deltas, _ = client.stream("stream_complete", "Hi")
    assert [d.text for d in deltas] == ["🙂"]


def test_tokens_and_models(client: Driver, server: FakeServer) -> None:
    assert client.call("tokenize", "Hello", add_special_tokens=False).tokens == [5, 6]
    assert server.requests[-1].body == {"model": MODEL, "prompt": "Hello", "add_special_tokens": False}
    assert client.call("tokenize", [{"role": "user", "content": "x"}]).count == 2
    assert server.requests[-1].body["messages"] == [{"role": "user", "content": "x"}]
    assert client.call("detokenize", [5, 6]) == "5 6"
    assert [model.id for model in client.call("models")] == [MODEL]


def test_an_error_is_typed(client: Driver, server: FakeServer) -> None:
    server.script.append(Answer(400, chunks=[error("top_p is 3", type="BadRequestError", param="top_p", code=400)]))
    with pytest.raises(APIError, match=r"top_p is 3 \(status 400\)") as caught:
        client.call("chat", "Hello", top_p=3)
    failure = caught.value
    assert (failure.status, failure.type, failure.param, failure.code) == (400, "BadRequestError", "top_p", 400)
    assert len([r for r in server.requests if "chat" in r.path]) == 1  # it would be refused again


def test_an_error_that_is_no_json(client: Driver, server: FakeServer) -> None:
    server.script.append(Answer(500, chunks=[b"<html>it broke</html>"]))
    with pytest.raises(APIError, match="<html>it broke</html>"):
        client.call("chat", "Hello")


def test_an_answer_that_is_no_such_server_s(client: Driver, server: FakeServer) -> None:
    server.script.append(Answer(200, chunks=[b"<html>welcome</html>"]))
    with pytest.raises(APIConnectionError, match="/v1/chat/completions: the server's answer is not as expected"):
        client.call("chat", "Hello")


@pytest.mark.parametrize("name", ["chat", "stream_chat"])
@pytest.mark.parametrize(
    "fault",
    [
        Answer(503, chunks=[error("full")]),
        Answer(429, chunks=[error("slow down")]),
        Answer(502, chunks=[b"gateway"]),
        Answer(has_no_answer=True),
    ],
    ids=["503", "429", "502", "closed"],
)
def test_what_may_pass_is_tried_again(client: Driver, server: FakeServer, fault: Answer, name: str) -> None:
    server.script += [fault, fault]
    if name == "chat":
        assert client.call("chat", "Hello", max_tokens=1).text == "w0 "
    else:
        assert "".join(d.text for d in client.stream(name, "Hello", max_tokens=1)[0]) == "w0 "
    assert len([r for r in server.requests if "chat" in r.path]) == 3


def test_not_for_ever(client: Driver, server: FakeServer) -> None:
    server.script += [Answer(503, chunks=[error(f"full {i}")]) for i in range(4)]
    with pytest.raises(APIError, match="full 2"):  # the third attempt's
        client.call("chat", "Hello")


def test_retry_after_is_waited_for(server: FakeServer, delays: list[float]) -> None:
    server.script += [Answer(503, {"Retry-After": "7"}, [error("full")]), Answer(503, chunks=[error("full")])]
    with Client(server.url) as client:
        client.chat("Hello")
        assert 7 <= delays[0] <= 7.5
        assert 0.5 <= delays[1] <= 1.0  # the second failure: twice the first delay, of which half at least
        server.script.append(Answer(503, {"Retry-After": "3600"}, [error("come back tomorrow")]))
        with pytest.raises(APIError) as caught:
            client.chat("Hello")
        assert caught.value.retry_after == 3600
    assert len(delays) == 2


def test_a_stream_that_has_begun_is_not_sent_again(client: Driver, server: FakeServer) -> None:
    first = event({"choices": [{"index": 0, "text": "a"}]})
    server.script.append(Answer(chunks=[first], breaks_off=True))
    with pytest.raises(APIConnectionError, match="broke"):
        client.stream("stream_complete", "Hi")
    server.script.append(Answer(chunks=[first]))
    with pytest.raises(APIConnectionError, match=r"ended before the server said \[DONE\]"):
        client.stream("stream_complete", "Hi")
    assert len([r for r in server.requests if "completions" in r.path]) == 2


def test_an_error_within_a_stream(client: Driver, server: FakeServer) -> None:
    fault = event(json.loads(error("the engine died", type="InternalServerError", code=500)))
    # All in one piece: what came before the error is not lost.
    server.script.append(Answer(chunks=[event({"choices": [{"index": 0, "text": "a"}]}) + fault + DONE]))
    deltas: list[Any] = []
    with pytest.raises(APIError, match="the engine died") as caught:
        client.stream("stream_complete", "Hi", into=deltas)
    assert caught.value.status is None
    assert (caught.value.type, caught.value.code) == ("InternalServerError", 500)
    assert [d.text for d in deltas] == ["a"]


def test_leaving_a_stream_early_closes_the_connection(client: Driver, server: FakeServer) -> None:
    server.token_seconds = 0.01
    deltas, _ = client.stream("stream_chat", "Hi", max_tokens=10_000, at_most=3)
    assert len(deltas) == 3
    assert server.gone.wait(5)


def test_a_silent_server(server: FakeServer, is_async: bool) -> None:
    server.script.append(Answer(chunks=[b"late"], pause=5))
    driver = Driver(is_async, server.url, timeout=0.2)
    with pytest.raises(APIConnectionError, match="was silent for too long"):
        driver.call("chat", "Hello")
    driver.close()
    assert len(server.requests) == 2  # /v1/models, and one attempt: the server may still be at work on it


def test_nobody_there(is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.01)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        driver = Driver(is_async, url)
        with pytest.raises(APIConnectionError, match=f"cannot reach {url}"):
            driver.call("chat", "Hello")
        assert driver.call("health") is False
        with pytest.raises(TimeoutError, match=r"is not ready after 0.2 s: cannot reach"):
            driver.call("wait_until_ready", 0.2)
        driver.close()


def test_health(client: Driver, server: FakeServer) -> None:
    assert client.call("health") is True
    server.is_healthy = False
    assert client.call("health") is False
    threading.Timer(0.3, lambda: setattr(server, "is_healthy", True)).start()
    start = time.monotonic()
    client.call("wait_until_ready", 10)
    assert 0.2 < time.monotonic() - start < 5


def test_mistakes_of_the_caller(client: Driver, server: FakeServer) -> None:
    with pytest.raises(ValueError, match="stream: not an option"):
        client.call("chat", "Hello", stream=True)
    with pytest.raises(ValueError, match=r"url: '127\.0\.0\.1:8000' is no address"):
        Client("127.0.0.1:8000")
    with pytest.raises(ValueError, match="max_retries: -1"):
        Client(server.url, max_retries=-1)


def test_an_address_that_ends_in_v1(server: FakeServer) -> None:
    with Client(server.url + "/v1/") as client:
        assert client.health()
        assert client.complete("a", max_tokens=1).text == "w0 "


def test_many_streams_at_once(server: FakeServer) -> None:
    """The connection pool holds none of them back."""
    server.token_seconds = 0.05

    async def run() -> list[str]:
        async with AsyncClient(server.url, model=MODEL) as client:

            async def one(i: int) -> str:
                async with client.stream_chat("Hi", max_tokens=i + 1) as stream:
                    return "".join([delta.text async for delta in stream])

            return await asyncio.gather(*(one(i % 3) for i in range(120)))

    texts = asyncio.run(run())
    assert texts[:3] == ["w0 ", "w0 w1 ", "w0 w1 w2 "]
    assert server.peak_open > 100


def test_importing_it_loads_nothing_of_the_engine() -> None:
    import subprocess
    import sys

    code = "import sys, lightvllm.client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    ours = {name for name in loaded if name.startswith("lightvllm.")}
    assert {name.split(".")[1] for name in ours} == {"client"}
    assert not {"torch", "numpy", "tokenizers", "transformers", "huggingface_hub", "openai"} & set(loaded)
