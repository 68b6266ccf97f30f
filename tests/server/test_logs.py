"""Log lines: one a record, in both forms; nothing of a request's gets out unescaped, and no key gets out at all."""

import asyncio
import json
import logging
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from httpx2 import ASGITransport, AsyncClient, Response
from hypothesis import given
from hypothesis import strategies as st

from lightvllm.server.logs import MAX_CHARACTERS, AccessLog, JsonFormatter, TextFormatter, configure_logging, note

TIMESTAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
HOSTILE = "a\nINFO forged: b\r\x1b[31m\x00\x7f\x85\u2028\u202e\ud800\"' status=200"

logger = logging.getLogger("lightvllm.server.test")


class Written:
    """All that was written to standard error so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """What is written there; the loggers are put back afterwards."""
    names = (None, "lightvllm", "uvicorn", "uvicorn.error", "uvicorn.access")
    loggers = [logging.getLogger(name) for name in names]
    before = [(log.level, log.handlers[:], log.propagate) for log in loggers]
    yield Written(capsys)
    for log, (level, handlers, propagate) in zip(loggers, before, strict=True):
        log.setLevel(level)
        log.handlers[:] = handlers
        log.propagate = propagate


def make_record(message: str, *args: Any, **extra: Any) -> logging.LogRecord:
    return logger.makeRecord(logger.name, logging.WARNING, "file.py", 1, message, args, None, extra=extra)


def is_one_clean_line(line: str) -> bool:
    return all(character.isprintable() for character in line)


def test_text_is_read_by_people() -> None:
    line = TextFormatter().format(make_record("took %d requests", 3, request_id="cmpl-1", share=0.5, name_of="a b"))
    assert re.fullmatch(
        TIMESTAMP + r' WARNING lightvllm\.server\.test: took 3 requests request_id=cmpl-1 share=0\.5 name_of="a b"',
        line,
    )


def test_json_has_its_fields() -> None:
    entry = json.loads(
        JsonFormatter().format(make_record("took %d", 3, request_id="cmpl-1", reasons=["stop"], no=None))
    )
    assert re.fullmatch(TIMESTAMP, entry.pop("ts"))
    assert entry == {
        "level": "WARNING",
        "logger": "lightvllm.server.test",
        "message": "took 3",
        "request_id": "cmpl-1",
        "reasons": ["stop"],
    }


def test_extra_fields_do_not_take_the_place_of_the_records_own() -> None:
    entry = json.loads(JsonFormatter().format(make_record("said", level="x", logger="y", ts="z")))
    assert (entry["level"], entry["logger"]) == ("WARNING", "lightvllm.server.test")
    assert entry["ts"] != "z"


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_hostile_text_stays_on_its_line(formatter: logging.Formatter) -> None:
    line = formatter.format(make_record("got %s", HOSTILE, user=HOSTILE))
    assert is_one_clean_line(line)
    assert "\\n" in line
    line.encode("utf-8")  # no lone surrogate


@given(st.text(alphabet=st.characters(), max_size=50))
def test_any_text_stays_on_its_line(text: str) -> None:
    record = make_record("%s", text, value=text)
    assert is_one_clean_line(TextFormatter().format(record))
    line = JsonFormatter().format(record)
    assert is_one_clean_line(line)
    assert json.loads(line)["value"] == text


def test_a_value_cannot_pass_for_another_field() -> None:
    line = TextFormatter().format(make_record("said", user='x" status=200 y="'))
    assert line.endswith(r'user="x\" status=200 y=\""')
    assert TextFormatter().format(make_record("said", user="")).endswith('user=""')


def test_json_knows_no_infinity() -> None:
    record = make_record("said", rate=float("nan"), most=float("inf"))
    entry = json.loads(JsonFormatter().format(record), parse_constant=pytest.fail)
    assert (entry["rate"], entry["most"]) == (None, None)


def test_an_exceptions_text_stays_on_its_line(stderr: Written) -> None:
    def fail() -> None:
        try:
            raise ValueError(HOSTILE)
        except ValueError as error:
            raise RuntimeError("outer\nline") from error

    for form in ("text", "json"):
        configure_logging(form)  # type: ignore[arg-type]
        try:
            fail()
        except RuntimeError:
            logger.exception("failed")
    *text, as_json = stderr.getvalue().removesuffix("\n").split("\n")
    assert all(map(is_one_clean_line, [*text, as_json]))
    assert re.match(TIMESTAMP + " ERROR lightvllm.server.test: failed", text[0])
    assert all(line.startswith("    | ") for line in text[1:])
    assert any(line.startswith("    | ValueError: a\\nINFO forged: b\\r\\x1b") for line in text)
    assert text[-1] == "    | RuntimeError: outer\\nline"
    lines = json.loads(as_json)["exception"].split("\n")
    assert lines == [line.removeprefix("    | ") for line in text[1:]]
    assert any("in fail" in line for line in lines)


def test_levels_and_uvicorns_loggers(stderr: Written) -> None:
    own = logging.StreamHandler(sys.stderr)
    logging.getLogger("uvicorn").addHandler(own)
    configure_logging("json", "INFO")
    configure_logging("json", "INFO")  # a second call does not double anything
    logger.debug("left out")
    logger.info("ours")
    logging.getLogger("uvicorn.error").info("uvicorn's")
    logging.getLogger("somebody").info("left out")
    logging.getLogger("somebody").warning("theirs")
    assert [json.loads(line)["message"] for line in stderr.getvalue().splitlines()] == ["ours", "uvicorn's", "theirs"]
    configure_logging("text", "DEBUG")
    logger.debug("now, too")
    assert stderr.getvalue().endswith("DEBUG lightvllm.server.test: now, too\n")


# ---- access lines


def make_app() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/completions")
    async def complete(request: Request) -> str:
        note(request, request_id="cmpl-7", model="some/model", user=HOSTILE + "x" * 1000)
        logger.info("at work")
        note(request.scope, prompt_tokens=12, cached_tokens=8, output_tokens=5, ttft=0.1234567)
        note(request, finish_reasons=["stop", "length"])
        return "hello"

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> Any:
            yield b"12345"
            await asyncio.sleep(0.05)
            yield b"67890"

        return StreamingResponse(chunks())

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("broken")

    return app


def ask(
    stderr: Written, send: Callable[[AsyncClient], Awaitable[Response]], form: str = "json"
) -> tuple[Response, list[Any]]:
    """The response, and the lines that were logged: parsed, if they are JSON."""
    configure_logging(form)  # type: ignore[arg-type]

    async def run() -> Response:
        transport = ASGITransport(app=AccessLog(make_app()), raise_app_exceptions=False, client=("10.1.2.3", 5))
        async with AsyncClient(transport=transport, base_url="http://test") as client:
            return await send(client)

    response = asyncio.run(run())
    lines = stderr.getvalue().splitlines()
    return response, [json.loads(line) if form == "json" else line for line in lines]


def test_an_access_line_has_what_was_noted(stderr: Written) -> None:
    _, (at_work, line) = ask(stderr, lambda client: client.post("/v1/completions"))
    assert at_work["request_id"] == line["request_id"] == "cmpl-7"
    assert 0 < line.pop("first_byte") <= line.pop("duration") < 10
    assert line.pop("user") == (HOSTILE + "x" * 1000)[:MAX_CHARACTERS] + "..."
    del line["ts"]
    assert line == {
        "level": "INFO",
        "logger": "lightvllm.access",
        "message": "request",
        "request_id": "cmpl-7",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "client": "10.1.2.3",
        "bytes_sent": len('"hello"'),
        "model": "some/model",
        "prompt_tokens": 12,
        "cached_tokens": 8,
        "output_tokens": 5,
        "ttft": 0.123457,
        "finish_reasons": "stop,length",
    }


def test_an_access_line_as_text(stderr: Written) -> None:
    _, lines = ask(stderr, lambda client: client.post("/v1/completions"), "text")
    assert len(lines) == 2
    assert is_one_clean_line(lines[1])
    assert re.match(
        TIMESTAMP + r" INFO lightvllm\.access: request request_id=cmpl-7 method=POST path=/v1/completions status=200 "
        r"client=10\.1\.2\.3 duration=[\d.e-]+ first_byte=[\d.e-]+ bytes_sent=7 ",
        lines[1],
    )


def test_a_path_is_escaped_and_cut_and_its_query_left_out(stderr: Written) -> None:
    path = "/a%0Ab%1B[31m%20status=200/" + "x" * 1000 + "?api_key=sk-secret"
    response, (line,) = ask(stderr, lambda client: client.get(path), "text")
    assert response.status_code == 404
    assert is_one_clean_line(line)
    assert r' path="/a\nb\x1b[31m status=200/x' in line
    assert len(line) < 2 * MAX_CHARACTERS
    assert "sk-secret" not in line


@pytest.mark.parametrize("form", ["text", "json"])
def test_keys_are_never_logged(stderr: Written, form: str) -> None:
    headers = {"Authorization": "Bearer sk-secret", "X-Api-Key": "sk-secret", "Cookie": "sk-secret"}
    ask(stderr, lambda c: c.post("/v1/completions?key=sk-secret", headers=headers, content="sk-secret"), form)
    ask(stderr, lambda c: c.get("/broken?key=sk-secret", headers=headers), form)
    assert "lightvllm.access" in stderr.getvalue()
    assert "sk-secret" not in stderr.getvalue()


def test_a_stream_is_logged_when_it_is_over(stderr: Written) -> None:
    _, (line,) = ask(stderr, lambda client: client.get("/stream"))
    assert line["bytes_sent"] == 10
    assert line["duration"] - line["first_byte"] >= 0.05
    assert "incomplete" not in line


def test_an_error_of_ours_is_logged_as_such(stderr: Written) -> None:
    _, (line,) = ask(stderr, lambda client: client.get("/broken"))
    assert line["status"] == 500


def test_the_id_is_the_clients_if_that_is_harmless(stderr: Written) -> None:
    for given_id in ("trace-1", "x" * 129, "a\tb", "\xe9"):
        ask(stderr, lambda client, value=given_id: client.get("/", headers={"X-Request-Id": value.encode("latin-1")}))
    ids = [json.loads(line)["request_id"] for line in stderr.getvalue().splitlines()]
    assert ids[0] == "trace-1"
    assert all(re.fullmatch("[0-9a-f]{32}", made) for made in ids[1:])
    assert len(set(ids)) == 4


def run_app(stderr: Written, app: Any, scope: dict[str, Any]) -> list[dict[str, Any]]:
    configure_logging("json")

    async def nothing(*_: Any) -> Any: ...

    asyncio.run(AccessLog(app)(scope, nothing, nothing))
    return [json.loads(line) for line in stderr.getvalue().splitlines()]


def test_a_response_that_breaks_off_is_incomplete(stderr: Written) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: 1", "more_body": True})

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    (line,) = run_app(stderr, app, scope)
    assert (line["status"], line["bytes_sent"], line["incomplete"]) == (200, 7, True)
    assert "client" not in line


def test_a_client_that_left_before_an_answer_has_no_status(stderr: Written) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    (line,) = run_app(stderr, app, {"type": "http", "method": "GET", "path": "/", "headers": []})
    assert "status" not in line
    assert line["incomplete"] is True


def test_requests_side_by_side_keep_their_ids(stderr: Written) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        note(scope, request_id=scope["path"])
        await asyncio.sleep(0.01)
        logger.info("of %s", scope["path"])

    async def nothing(*_: Any) -> Any: ...

    async def run() -> None:
        log = AccessLog(app)
        scopes = [{"type": "http", "method": "GET", "path": str(i), "headers": []} for i in range(5)]
        await asyncio.gather(*(log(scope, nothing, nothing) for scope in scopes))
        await log({"type": "http", "method": "GET", "path": "last", "headers": []}, nothing, nothing)
        logger.info("after it")

    configure_logging("json")
    asyncio.run(run())
    entries = [json.loads(line) for line in stderr.getvalue().splitlines()]
    spoken = [entry for entry in entries if entry["logger"] == logger.name]
    after = spoken.pop()
    assert len(spoken) == 6
    assert all(entry["message"] == f"of {entry['request_id']}" for entry in spoken)
    assert "request_id" not in after


def test_a_lifespan_passes_through_and_notes_need_no_log(stderr: Written) -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        note(scope, model="m")

    assert run_app(stderr, app, {"type": "lifespan"}) == []
    assert seen == [{"type": "lifespan"}]
