"""Errors as clients see them: OpenAI's error object for everything, whoever raised it."""

import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightvllm.engine.async_engine import RequestFailed
from lightvllm.errors import EngineAsleep, EngineBusy, EngineOverloaded, EngineUnavailable, ParameterError
from lightvllm.server.protocol.base import show

logger = logging.getLogger(__name__)

# Seconds after which trying again makes sense, where nobody knows better: about what an engine takes to start.
RETRY_AFTER = 5

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "overloaded_error"}
_FAILURES = {
    "deadline": (504, "deadline_exceeded"),
    "engine": (500, "engine_failed"),
    "shutdown": (503, "shutting_down"),
    "structure": (400, "structure_too_costly"),
}
# An engine's ValueError names the field first, as in "messages[0].content: ..." or "prompt: ...".
_FIELD = re.compile(r"([a-z_]+)[:.\[]")


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str = Field(description="In words; says what was found and what is expected.")
    type: str = Field(description="invalid_request_error, authentication_error, overloaded_error, server_error, ...")
    param: str | None = Field(description="Name of the request's field that is at fault.")
    code: str | None = Field(description="For programs, where there is more to say than the type.")


class ErrorResponse(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorObject


class ApiError(Exception):
    """An error with all that its answer says.

    Args:
        status: the HTTP status; it also tells the error object's type.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's names."""
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """The error object, as in `ErrorResponse`."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def to_api_error(error: Exception) -> ApiError:
    """What a client is told of any exception: all of it where it is about the request, nothing where it is our bug."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ParameterError):
        return ApiError(400, str(error), param=error.parameter)
    if isinstance(error, EngineOverloaded):
        retry = str(max(1, round(error.retry_after)))
        return ApiError(503, str(error), code="overloaded", headers={"retry-after": retry})
    if isinstance(error, EngineAsleep):  # nobody knows until when: no Retry-After
        return ApiError(503, str(error), code="engine_asleep")
    if isinstance(error, EngineBusy):
        return ApiError(409, str(error), code="engine_busy")
    if isinstance(error, EngineUnavailable):
        return ApiError(503, str(error), code="engine_unavailable", headers={"retry-after": str(RETRY_AFTER)})
    if isinstance(error, RequestFailed):
        status, code = _FAILURES[error.kind]
        headers = {"retry-after": str(RETRY_AFTER)} if status == 503 else {}
        return ApiError(status, str(error), code=code, headers=headers)
    if isinstance(error, RequestValidationError):
        return _invalid_parameter(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if type(error) is ValueError:  # of the engine, about the request; its subclasses are somebody else's
        field = _FIELD.match(str(error))
        return ApiError(400, str(error), param=field[1] if field else None)
    return ApiError(500, "the server made a mistake; its log says more")


def _invalid_parameter(error: RequestValidationError) -> ApiError:
    """A query parameter, or the body of one of the page's own endpoints."""
    first = error.errors()[0]
    named = [step for step in first["loc"][1:] if isinstance(step, str)]
    name = named[0] if named else None
    return ApiError(400, f"{name or 'body'}: {first['msg']}, got {show(first.get('input'))}", param=name)


async def answer_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Starlette's handler for its own exceptions: a path or a method that is not there."""
    api_error = to_api_error(error)
    if isinstance(error, HTTPException) and error.detail == HTTPStatus(error.status_code).phrase:
        where = f"{request.method} {show(request.url.path)[1:-1]}"
        if error.status_code == 404:
            api_error.message, api_error.code = f"no such path: {where}; /docs lists what there is", "not_found"
        if error.status_code == 405:
            allowed = api_error.headers.get("Allow", "another")
            api_error.message, api_error.code = f"no such method: {where}; allowed is {allowed}", "method_not_allowed"
    return api_error.response()


class CatchErrors:
    """ASGI middleware that answers every exception. Our own bugs are logged with the request's id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_started = False

        async def watched_send(message: Message) -> None:
            nonlocal has_started
            has_started = has_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except ClientDisconnect:
            return
        except Exception as error:
            api_error = to_api_error(error)
            if api_error.status == 500:
                logger.error("request %s failed", scope["state"]["request_id"], exc_info=error)
            # Where the response has begun nothing can be taken back: the server sees it unfinished and hangs up.
            if not has_started:
                await api_error.response()(scope, receive, send)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: the errors that it answers with, besides 401, 500 and 503, which are everywhere."""
    return {
        status: {"model": ErrorResponse, "description": HTTPStatus(status).phrase}
        for status in sorted({*statuses, 401, 500, 503})
    }
