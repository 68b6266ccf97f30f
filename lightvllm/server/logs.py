"""The server's log: one line a record, as text or as JSON, in which nothing from a request stays unescaped; and its
access lines.

Neither headers, nor query strings, nor bodies are ever logged: keys and prompts are in these.
"""

import json
import logging
import math
import sys
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What a request says in a line of the log is cut to so many characters.
MAX_CHARACTERS = 256

# What is known of the request that the current task serves.
_facts: ContextVar[dict[str, Any] | None] = ContextVar("facts", default=None)

_RECORD_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}

access_logger = logging.getLogger("lightvllm.access")


def configure_logging(format: Literal["text", "json"] = "text", level: int | str = "INFO") -> None:
    """Write the log of this process to standard error, uvicorn's included.

    Args:
        level: of our own records and uvicorn's; of everybody else's, nothing below a warning is written.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("lightvllm", "uvicorn"):
        logging.getLogger(name).setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # they come with handlers of their own
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def escape(text: str) -> str:
    """The text with every character that does not show, a line's end or a terminal's command, as an escape sequence.

    So that a log line is one line, and says what it seems to say.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO lightvllm.access: request request_id=cmpl-1 method=POST path=/v1/completions ...`

    A traceback follows on lines that begin with "    | ".
    """

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_timestamp(record)} {record.levelname} {record.name}: {escape(_message(record))}"
        fields = (f"{key}={_quoted(value)}" for key, value in _fields(record).items())
        return "\n    | ".join([" ".join([head, *fields]), *_traceback(record)])


class JsonFormatter(logging.Formatter):
    """An object a line: ts, level, logger, message, request_id where there is one, `extra`'s fields, and exception."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "ts": _timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        entry = {**entry, **_fields(record), **entry}  # in this order; `extra` does not hide what is the record's own
        if lines := list(_traceback(record)):
            entry["exception"] = "\n".join(lines)
        return json.dumps(entry, default=str)  # in ASCII: everything else is escaped


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    return record.getMessage().rstrip("\n")  # uvicorn ends some with one


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The record's `extra`, and the id of the request it is about."""
    extra = {key: value for key, value in vars(record).items() if key not in _RECORD_FIELDS}
    facts = _facts.get()
    fields = {"request_id": facts["request_id"]} if facts is not None else {}
    fields |= {key: _plain(value) for key, value in extra.items() if value is not None}
    return fields


def _plain(value: Any) -> Any:
    """What JSON has: it has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _quoted(value: Any) -> str:
    """A value as one word: text that could be taken for more than that is quoted."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if isinstance(value, str) and (not text or not text.isprintable() or any(c in text for c in ' "=\\')):
        text = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escape(text)}"'
    return escape(text)


def _traceback(record: logging.LogRecord) -> Iterator[str]:
    """The lines of the record's traceback. An exception's own text is one line: it may quote a request."""
    if record.exc_info and record.exc_info[1] is not None:
        for piece in traceback.TracebackException.from_exception(record.exc_info[1]).format():
            is_frame = piece.startswith("  File ")
            for line in piece.rstrip("\n").split("\n") if is_frame else [piece.strip("\n")]:
                yield escape(line)
    if record.stack_info:
        yield from map(escape, record.stack_info.split("\n"))


# ---- access lines


def note(
    request: HTTPConnection | Scope,
    *,
    request_id: str | None = None,
    model: str | None = None,
    prompt_tokens: int | None = None,
    cached_tokens: int | None = None,
    output_tokens: int | None = None,
    ttft: float | None = None,
    finish_reasons: Sequence[str] | None = None,
    user: str | None = None,
) -> None:
    """Add what an endpoint knows to its request's access line; what is noted twice has the later value.

    Without `AccessLog` around the application nothing happens.

    Args:
        request: Starlette's, or its scope.
        request_id: the id in the response, in place of the connection's: the records logged from now on have it, too.
        prompt_tokens, cached_tokens, output_tokens: as in `usage`.
        ttft: seconds until the first token.
        finish_reasons: of all choices.
        user: who asks, as the request says.
    """
    scope = request.scope if isinstance(request, HTTPConnection) else request
    facts = scope.get("state", {}).get("access")
    if facts is not None:
        noted = {
            "request_id": request_id,
            "model": model,
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached_tokens,
            "output_tokens": output_tokens,
            "ttft": None if ttft is None else round(ttft, 6),
            "finish_reasons": None if finish_reasons is None else ",".join(finish_reasons),
            "user": user,
        }
        facts |= {key: _cut(value) for key, value in noted.items() if value is not None}


class AccessLog:
    """ASGI middleware: a line for each request when it is over, and an id for it before it begins.

    A line has request_id, method, path, status (none if there was no response), client (its address), duration and
    first_byte in seconds, bytes_sent, incomplete (if the client went away, or the response broke off), and what was
    noted. The id is the header `X-Request-Id`, if that is short and shows, else a new one. Endpoints find it as
    `request.state.access["request_id"]`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts = {"request_id": _given_id(scope) or uuid.uuid4().hex}
        scope.setdefault("state", {})["access"] = facts
        progress = _Progress(send)
        token = _facts.set(facts)
        try:
            await self._app(scope, receive, progress.send)
        finally:
            _write_line(scope, facts, progress)
            _facts.reset(token)


class _Progress:
    """How far a response came."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.start = time.perf_counter()
        self.status: int | None = None
        self.first_byte: float | None = None
        self.num_bytes = 0
        self.is_complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            if self.first_byte is None:
                self.first_byte = time.perf_counter() - self.start
            self.num_bytes += len(message.get("body", b""))
            self.is_complete = not message.get("more_body", False)
        await self._send(message)


def _write_line(scope: Scope, facts: dict[str, Any], progress: _Progress) -> None:
    client = scope.get("client")
    fields = {
        "method": _cut(scope["method"]),
        "path": _cut(scope["path"]),
        "status": progress.status,
        "client": client[0] if client else None,
        "duration": round(time.perf_counter() - progress.start, 6),
        "first_byte": None if progress.first_byte is None else round(progress.first_byte, 6),
        "bytes_sent": progress.num_bytes,
        "incomplete": None if progress.is_complete else True,
    }
    access_logger.info("request", extra={**fields, **facts})


def _given_id(scope: Scope) -> str | None:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    return given if 0 < len(given) <= 128 and given.isascii() and given.isprintable() else None


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_CHARACTERS:
        return value[:MAX_CHARACTERS] + "..."
    return value
