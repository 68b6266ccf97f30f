"""Requests are sent when they should be, and timed and counted right."""

import asyncio
import itertools
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lightvllm.bench.load.dataset import LoadRequest
from lightvllm.bench.load.run import Run, run_load
from lightvllm.bench.load.stream import Target
from tests.client.fake_server import DONE, MODEL, Answer, FakeServer, error, event, running


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running() as server:
        yield server


def load(
    server: FakeServer,
    lengths: list[int],
    arrivals: Iterator[float] | None = None,
    is_chat: bool = False,
    **options: Any,
) -> Run:
    bodies = [LoadRequest("Hi", length).body(MODEL, is_chat, {"max_tokens": length}) for length in lengths]
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    target = Target(server.url + path, {"Authorization": "Bearer k"}, timeout=options.pop("timeout", 20))
    return asyncio.run(run_load(target, bodies, arrivals or itertools.repeat(0.0), **options))


@pytest.mark.parametrize("is_chat", [False, True])
def test_what_is_measured(server: FakeServer, is_chat: bool) -> None:
    server.token_seconds = 0.05
    start = time.perf_counter()
    run = load(server, [4], is_chat=is_chat)
    seconds = time.perf_counter() - start
    [outcome] = run.outcomes
    assert outcome.error is None
    assert outcome.text == "w0 w1 w2 w3 "
    assert (outcome.prompt_tokens, outcome.output_tokens) == (7, 4)
    assert len(outcome.itls) == 3  # neither the role before nor the finish reason behind is output
    # A pause before each of the server's writes; how late the client sees one, the machine decides.
    assert outcome.ttft >= (0.1 if is_chat else 0.05)
    assert outcome.latency >= outcome.ttft + 0.15
    assert sum(outcome.itls) > 0.05
    assert outcome.ttft + sum(outcome.itls) <= outcome.latency <= run.seconds < seconds
    request = server.requests[-1]
    assert request.headers["authorization"] == "Bearer k"
    assert request.body["stream"] is True


def test_pieces_are_counted_where_the_server_does_not(server: FakeServer) -> None:
    server.sends_usage = False
    [outcome] = load(server, [5]).outcomes
    assert outcome.output_tokens is outcome.prompt_tokens is None
    assert len(outcome.itls) == 4


def test_reasoning_tools_and_bare_token_ids_are_output(server: FakeServer) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    choices: list[dict[str, Any]] = [
        {"delta": {"role": "assistant", "content": ""}},
        {"delta": {"reasoning": "hm"}},
        {"delta": {"reasoning_content": " hm"}},
        {"delta": {"content": "so"}},
        {"delta": {"tool_calls": [call]}},
        {"delta": {}, "token_ids": [3]},
        {"delta": {}, "finish_reason": "stop"},
    ]
    server.script.append(Answer(chunks=[event({"choices": [{"index": 0} | choice]}) for choice in choices] + [DONE]))
    [outcome] = load(server, [1], is_chat=True).outcomes
    assert outcome.error is None
    assert outcome.text == "hm hmso"
    assert len(outcome.itls) == 4


def test_tokens_without_text_show_at_the_end(server: FakeServer) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 3}
    last = event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    server.script.append(Answer(chunks=[last, event({"choices": [], "usage": usage}), DONE], pause=0.3))
    [outcome] = load(server, [3]).outcomes
    assert outcome.error is None
    assert 0.3 <= outcome.ttft == outcome.latency < 0.6
    assert (outcome.output_tokens, outcome.itls) == (3, [])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(503, chunks=[error("full")]), r"full \(status 503\)"),
        (Answer(404, chunks=[b"nothing here"]), "nothing here"),
        (Answer(has_no_answer=True), "the connection failed"),
        (Answer(chunks=[event({"choices": [{"text": "a"}]})], breaks_off=True), "the connection failed"),
        (Answer(chunks=[event({"choices": [{"text": "a"}]})]), r"ended before the server said \[DONE\]"),
        (Answer(chunks=[event(json.loads(error("died"))), DONE]), "^died$"),
        (Answer(chunks=[b"data: <html>\n\n", DONE]), "not as expected"),
        (Answer(chunks=[b"", DONE], pause=1.5), "it took longer than 1 s"),
    ],
)
def test_failures_are_counted_not_raised(server: FakeServer, answer: Answer, message: str) -> None:
    server.script.append(answer)
    outcomes = load(server, [1, 1], max_concurrency=1, timeout=1).outcomes
    assert outcomes[0].error is not None
    assert re.search(message, outcomes[0].error)
    assert outcomes[1].error is None


def test_nobody_there(server: FakeServer) -> None:
    target = Target("http://127.0.0.1:9/v1/completions", {}, timeout=5)
    run = asyncio.run(run_load(target, [b"{}"], itertools.repeat(0.0)))
    assert "the connection failed" in str(run.outcomes[0].error)


def test_all_at_once_or_so_many_at_a_time(server: FakeServer) -> None:
    server.token_seconds = 0.02
    assert len(load(server, [5] * 30).outcomes) == 30
    assert server.peak_open == 30
    server.peak_open, server.token_seconds = 0, 0.05
    run = load(server, [5] * 12, max_concurrency=4)
    assert server.peak_open == 4
    held = [outcome.queue_time for outcome in run.outcomes]
    assert max(held[:4]) < 0.3 <= min(held[4:8])
    assert min(held[8:]) >= 0.6


def test_requests_are_sent_when_they_are_due(server: FakeServer) -> None:
    due = [0.0, 0.2, 0.25, 0.6]
    run = load(server, [1] * 4, arrivals=iter(due))
    assert all(when <= outcome.start < when + 0.3 for outcome, when in zip(run.outcomes, due, strict=True))


def test_for_a_time(server: FakeServer) -> None:
    """The requests come again and again; those that run at the end are waited for."""
    server.token_seconds = 0.01
    run = load(server, [1, 2], max_concurrency=2, duration=0.5)
    texts = [outcome.text for outcome in run.outcomes]
    assert len(texts) > 4
    assert texts == list(itertools.islice(itertools.cycle(["w0 ", "w0 w1 "]), len(texts)))
    assert all(outcome.error is None and outcome.start <= 1 for outcome in run.outcomes)
    assert 0.45 < run.seconds < 5
    run = load(server, [1], arrivals=itertools.count(0.0, 0.2), duration=0.75)
    assert len(run.outcomes) == 4


def test_progress(server: FakeServer) -> None:
    done: list[None] = []
    load(server, [1, 1, 1], on_done=lambda: done.append(None))
    assert len(done) == 3


def test_addresses() -> None:
    target = Target("https://host/prefix/v1/completions?a=1", {}, 1)
    assert (target.host, target.port, target.path) == ("host", 443, "/prefix/v1/completions?a=1")
    assert target.ssl is not None
    for url in ("host:80/v1", "ftp://host/", "http:///v1"):
        with pytest.raises(ValueError, match="is no address of a server"):
            Target(url, {}, 1)
