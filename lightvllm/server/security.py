"""Who may ask: API keys, and the ids that requests are known by."""

import hashlib
import hmac
import re
import uuid
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightvllm.server.errors import ApiError

# Whether the server lives is no secret, and who asks (a load balancer) has no key. The page's files are the same for
# everybody, and a browser cannot send a key with the address it is given: the page asks for one and sends it itself.
PUBLIC_PATHS = frozenset({"/health", "/ping", "/"})
PUBLIC_FOLDER = "/static/"

_REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")


class RequestId:
    """ASGI middleware: the client's X-Request-Id, or a new one, in `request.state.request_id` and in the answer.

    Where there is an access log around it, the id is the log's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        given = state.get("access", {}).get("request_id") or Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class RequireApiKey:
    """ASGI middleware: everything but `PUBLIC_PATHS` and the page's files needs `Authorization: Bearer KEY`.

    Args:
        keys: at least one.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self.app = app
        self.digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_public(scope) or self._is_known(Headers(scope=scope).get("authorization")):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            401,
            "a valid API key is needed, in the header Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
        await error.response()(scope, receive, send)

    def _is_known(self, authorization: str | None) -> bool:
        scheme, _, key = (authorization or "").partition(" ")
        # Headers are decoded as latin-1, which gives back the bytes; all are compared, so that time tells nothing.
        digest = _digest(key.strip().encode("latin-1"))
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        return scheme.lower() == "bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def is_public(scope: Scope) -> bool:
    """Whether a request needs no key."""
    path, root = scope["path"], scope.get("root_path", "")
    if root and path.startswith(root + "/"):
        path = path[len(root) :]
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER)
