"""`chat --url` is the same conversation, with a server."""

import io
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from lightvllm.cli.chat import DIM, UNDIM, Chat
from lightvllm.cli.main import main
from lightvllm.cli.partner import RemotePartner
from lightvllm.client import Client
from tests.client.fake_server import DONE, MODEL, Answer, FakeServer, error, event, running


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running() as server:
        yield server


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _chat(server: FakeServer, monkeypatch: pytest.MonkeyPatch, lines: str, *flags: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return main(["chat", "--url", server.url, *flags])


def _delta(**delta: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta}]})


def _interrupt_after(seconds: float) -> None:
    """Ctrl-C, which goes to the main thread, whatever it waits for."""
    arguments = [threading.main_thread().ident, signal.SIGINT]
    threading.Timer(seconds, signal.pthread_kill, arguments).start()


def test_a_piped_conversation(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--api-key", "k", "--max-tokens", "2", "--temperature", "0", "--stop", "x", "--system", "Be brief."]
    assert _chat(server, monkeypatch, "Hello\nAnd you?\n/reset\n/system\nAgain\n", *flags) == 0
    printed = capsys.readouterr()
    assert printed.out == "w0 w1 \n" * 3
    assert printed.err.count("[2 tokens, ") == 3
    bodies = [r.body for r in server.requests if r.path == "/v1/chat/completions"]
    assert all(r.headers["authorization"] == "Bearer k" for r in server.requests)
    system = {"role": "system", "content": "Be brief."}
    answer = {"role": "assistant", "content": "w0 w1 "}
    assert [body["messages"] for body in bodies] == [
        [system, {"role": "user", "content": "Hello"}],
        [system, {"role": "user", "content": "Hello"}, answer, {"role": "user", "content": "And you?"}],
        [{"role": "user", "content": "Again"}],
    ]
    sampling = {"max_tokens": 2, "temperature": 0.0, "stop": ["x"]}
    assert bodies[0] == sampling | {
        "model": MODEL,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [system, {"role": "user", "content": "Hello"}],
    }


def test_only_a_terminal_shows_reasoning(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chunks = [
        _delta(role="assistant"),
        _delta(reasoning="let me"),
        _delta(reasoning=" see"),
        _delta(content="42"),
        DONE,
    ]
    server.script += [Answer(chunks=chunks), Answer(chunks=chunks)]
    assert _chat(server, monkeypatch, "Hello\n") == 0
    assert capsys.readouterr().out == "42\n"
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert _chat(server, monkeypatch, "Hello\nGo on\n") == 0
    assert terminal.getvalue().startswith(f"{DIM}let me see{UNDIM}\n42\n")
    assert server.requests[-1].body["messages"][1]["content"] == "42"  # what was thought is not said again


def test_an_error_leaves_the_conversation_as_it_was(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script += [
        Answer(400, chunks=[error("the prompt has 999 tokens")]),
        Answer(chunks=[_delta(content="half"), b"data: " + error("the engine died") + b"\n\n"]),
    ]
    assert _chat(server, monkeypatch, "Hello\nHello\nHello\n", "--max-tokens", "1") == 1
    printed = capsys.readouterr()
    assert printed.out == "half\nw0 \n"
    assert "error: the prompt has 999 tokens (status 400)" in printed.err
    assert "error: the engine died" in printed.err
    assert len(server.requests[-1].body["messages"]) == 1


def test_an_interrupt_stops_a_silent_server_s_answer(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chunks = [_delta(content="so"), _delta(content=" far"), *[b""] * 600, DONE]
    server.script.append(Answer(chunks=chunks, pause=0.05))
    handler = signal.getsignal(signal.SIGINT)
    with Client(server.url) as client:
        chat = Chat(RemotePartner(client, {}))
        _interrupt_after(0.5)
        chat.say("Hello")
        assert chat.turns[-1]["content"] == "so far"
        assert capsys.readouterr().out == "so far\n"
        assert signal.getsignal(signal.SIGINT) is handler
        chat.say("Go on")
    assert len(chat.turns) == 4


def test_an_interrupt_before_the_answer_begins(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.append(Answer(chunks=[b""] * 600, pause=0.05))
    with Client(server.url) as client:
        chat = Chat(RemotePartner(client, {}))
        _interrupt_after(0.3)
        chat.say("Hello")
    assert chat.turns == []
    assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--url", "{url}", "--max-model-len", "9"], "max_model_len: not to be given with --url"),
        (["--url", "{url}", "--seed", "9"], "seed: not to be given with --url"),
        (["--url", "localhost:80"], "url: 'localhost:80' is no address of a server"),
        (["--api-key", "k"], "api_key: only a server asks for one"),
    ],
)
def test_mistakes(server: FakeServer, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", *(server.url if word == "{url}" else word for word in words)]) == 1
    assert f"error: {message}" in capsys.readouterr().err


def test_a_server_that_lets_nobody_in_says_so_at_once(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        server, "_respond", lambda request, writer: server._send(writer, Answer(401, chunks=[error("no")]))
    )
    assert _chat(server, monkeypatch, "") == 1
    assert "error: no (status 401)" in capsys.readouterr().err


def test_the_model_can_be_named(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _chat(server, monkeypatch, "Hello\n", "--model", "other") == 0
    assert server.requests[-1].body["model"] == "other"
