"""What a call to a server can end with, and reading it from what the server sent."""

import email.utils
import time
from typing import Any

import msgspec


class APIError(RuntimeError):
    """The server answered with an error.

    Attributes:
        status: of the HTTP answer; None where the error came within a stream, or no answer came.
        message: in the server's words.
        type, param, code: of OpenAI's error object, None where the server gives none. `param` is the refused field.
        retry_after: seconds after which the server says that trying again makes sense; None if it does not say.
    """

    def __init__(
        self,
        status: int | None,
        message: str,
        type: str | None = None,
        param: str | None = None,
        code: str | int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message if self.status is None else f"{self.message} (status {self.status})"


class APIConnectionError(APIError):
    """No answer, or not all of it: the server cannot be reached, was silent for too long, or broke off.

    Attributes:
        can_retry: nothing suggests that the server still works on the request.
    """

    def __init__(self, message: str, can_retry: bool = False) -> None:
        super().__init__(None, message)
        self.can_retry = can_retry


def error_of_response(status: int, body: bytes, retry_after: str | None) -> APIError:
    """The error of an answer whose status says that it is one. A body in another form than OpenAI's is the message."""
    seconds = _seconds_until(retry_after)
    try:
        return error_of_object(msgspec.json.decode(body)["error"], status, seconds)
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError):
        text = body.decode("utf-8", "replace").strip()
        return APIError(status, text[:1000] or "an error without a message", retry_after=seconds)


def error_of_object(error: Any, status: int | None = None, retry_after: float | None = None) -> APIError:
    """From OpenAI's error object. Servers that give only a text are understood, too."""
    if not isinstance(error, dict):
        return APIError(status, str(error), retry_after=retry_after)
    message = str(error.get("message") or "an error without a message")
    return APIError(status, message, error.get("type"), error.get("param"), error.get("code"), retry_after)


def _seconds_until(retry_after: str | None) -> float | None:
    """The Retry-After header in either of its two forms, seconds and a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None
