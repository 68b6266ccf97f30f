"""A request's body: read within bounds of size and time, and parsed as the strictest JSON."""

import asyncio
import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request

from lightvllm.errors import ParameterError
from lightvllm.server.errors import RETRY_AFTER, ApiError
from lightvllm.server.limits import MAX_JSON_DEPTH, MAX_JSON_KEYS
from lightvllm.server.protocol.base import show

# Bodies from this size on are parsed in a thread: the event loop has others to serve.
_LARGE = 64 * 1024
_MEDIA_TYPE = re.compile(r"application/(json|[\w.+-]+\+json)", re.IGNORECASE)
# Where one of these is found, the text may have half of a surrogate pair, which is no character.
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
# The rest of the body is not read after these answers, so the connection cannot be used again.
_CLOSE = {"connection": "close"}

T = TypeVar("T")


class Bodies:
    """The bytes of all bodies that are being read: many connections must not fill the memory that one cannot."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Count what has come.

        Raises:
            ApiError: 503, it is too much.
        """
        self.num_bytes += num_bytes
        if self.num_bytes > self.max_bytes:
            headers = {"retry-after": str(RETRY_AFTER), **_CLOSE}
            raise ApiError(503, "too many large requests come in at a time", code="overloaded", headers=headers)

    def give_back(self, num_bytes: int) -> None:
        """They are no longer held, or parsed."""
        self.num_bytes -= num_bytes


async def read_body(request: Request, max_bytes: int, timeout: float, bodies: Bodies) -> bytes:
    """The bytes of a JSON body.

    Args:
        timeout: seconds for all of it.
        bodies: counts it while it is read.

    Raises:
        ApiError: 415 for another content type, which also keeps forms on foreign pages from posting; 413; 408; 503.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip()
    if not _MEDIA_TYPE.fullmatch(media_type):
        message = f"content-type: {show(media_type)} is not supported, expected application/json"
        raise ApiError(415, message, code="unsupported_media_type", headers=_CLOSE)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        message = f"content-encoding: {show(encoding)} is not supported, send the body as it is"
        raise ApiError(415, message, code="unsupported_media_type", headers=_CLOSE)
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for chunk in request.stream():  # whatever the content-length said
                body += chunk
                bodies.take(len(chunk))
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        message = f"the request's body was not there after {timeout:g} seconds"
        raise ApiError(408, message, code="request_timeout", headers=_CLOSE) from None
    finally:
        bodies.give_back(len(body))
    return bytes(body)


def _too_large(max_bytes: int) -> ApiError:
    message = f"the request's body is larger than {max_bytes} bytes"
    return ApiError(413, message, code="request_too_large", headers=_CLOSE)


async def parse_body(body: bytes, parse: Callable[[dict[str, Any]], T]) -> T:
    """The body's JSON object, given to `parse`: both in a thread if the body is large."""
    if len(body) < _LARGE:
        return parse(parse_json(body))
    return await asyncio.to_thread(lambda: parse(parse_json(body)))


def parse_json(body: bytes) -> dict[str, Any]:
    """The object in a JSON text.

    What parsers disagree on is refused: keys that appear twice, NaN and infinities, numbers that overflow, and half
    surrogate pairs, which cannot be written as UTF-8 again.

    Raises:
        ApiError: 400, with what is wrong and where.
        ParameterError: the same, where it is in the value of a field.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is not valid UTF-8") from None
    try:
        data = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _malformed(f"nested more than {MAX_JSON_DEPTH} deep") from None
    if not isinstance(data, dict):
        raise _malformed(f"expected an object, got {show(data)}")
    _check_depth(data)
    if _SURROGATE_ESCAPE.search(body):
        _check_characters(data)
    return data


def _malformed(what: str) -> ApiError:
    return ApiError(400, f"the request's body is not the JSON it should be: {what}", code="invalid_json")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_JSON_KEYS:
        raise _malformed(f"an object has {len(pairs)} keys, expected at most {MAX_JSON_KEYS}")
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _malformed(f"the key {show(repeated)} appears twice in one object")
    return result


def _refuse_constant(name: str) -> float:
    raise _malformed(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _malformed(f"the number {digits[:40]} is too large")
    return number


def _integer(digits: str) -> int:
    if len(digits) > 400:  # 1e308 has 309 digits; conversion takes quadratic time
        raise _malformed(f"the number {digits[:40]}... has {len(digits)} digits")
    return int(digits)


def _check_depth(data: dict[str, Any]) -> None:
    level: list[Any] = [data]
    for _ in range(MAX_JSON_DEPTH):
        below = [child for parent in level for child in (parent.values() if isinstance(parent, dict) else parent)]
        level = [child for child in below if isinstance(child, (dict, list))]
        if not level:
            return
    raise _malformed(f"nested more than {MAX_JSON_DEPTH} deep")


def _check_characters(data: dict[str, Any]) -> None:
    for name, value in data.items():
        try:
            json.dumps({name: value}, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            field = show(name)[1:-1]
            raise ParameterError(field, f"{field}: {half} is half of a surrogate pair, not a character") from None
