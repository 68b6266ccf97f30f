"""/sleep, /wake_up and /is_sleeping: who may ask, and what is answered. The engine is a fake one."""

import asyncio
import dataclasses
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient, Response

from lightvllm.config import ServerConfig
from lightvllm.engine.sleep import check_level, check_tags
from lightvllm.errors import EngineAsleep, EngineBusy, EngineUnavailable
from lightvllm.server.app import build_app
from tests.server.fakes import FakeEngine


class SleepingEngine(FakeEngine):
    """Notes what it is asked.

    Attributes:
        failure: raised in place of doing it.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.config = dataclasses.replace(self.config, enable_sleep_mode=enabled)
        self.is_sleeping = False
        self.asked: list[tuple[str, Any]] = []
        self.failure: Exception | None = None

    async def sleep(self, level: int = 1) -> None:
        check_level(level)
        self._note("sleep", level)
        self.is_sleeping = True
        self.refusal = EngineAsleep("the engine sleeps: wake it up first")

    async def wake_up(self, tags: list[str] | None = None) -> None:
        self._note("wake_up", tags)
        self.is_sleeping = check_tags(tags) != check_tags(None)
        self.refusal = self.refusal if self.is_sleeping else None

    def _note(self, what: str, argument: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.asked.append((what, argument))


class Server:
    def __init__(self, enabled: bool = True, **settings: Any) -> None:
        self.engine = SleepingEngine(enabled)
        self.app = build_app(self.engine, ServerConfig(**settings), model_names=["m"])  # type: ignore[arg-type]

    def ask(self, method: str, path: str, **request: Any) -> Response:
        async def main() -> Response:
            async with AsyncClient(transport=ASGITransport(self.app), base_url="http://test") as client:
                return await client.request(method, path, **request)

        return asyncio.run(main())

    def is_sleeping(self) -> bool:
        response = self.ask("GET", "/is_sleeping")
        assert response.status_code == 200
        (value,) = response.json().values()
        return value


def test_it_sleeps_and_wakes_up() -> None:
    server = Server()
    assert server.is_sleeping() is False
    for path in ("/sleep", "/sleep?level=1", "/sleep?level=2"):
        response = server.ask("POST", path)
        assert (response.status_code, response.json()) == (200, {"is_sleeping": True})
    assert server.is_sleeping() is True
    response = server.ask("POST", "/wake_up?tags=weights")
    assert (response.status_code, response.json()) == (200, {"is_sleeping": True})
    for path in ("/wake_up?tags=weights&tags=kv_cache", "/wake_up"):
        assert server.ask("POST", path).json() == {"is_sleeping": False}
    assert server.is_sleeping() is False
    asked = [("sleep", 1), ("sleep", 1), ("sleep", 2), ("wake_up", ["weights"]), ("wake_up", ["weights", "kv_cache"])]
    assert server.engine.asked == [*asked, ("wake_up", None)]


def test_requests_meanwhile_are_a_503_without_a_time() -> None:
    """Nobody knows when somebody will wake it up."""
    server = Server()
    server.ask("POST", "/sleep")
    response = server.ask("POST", "/v1/completions", json={"prompt": "a"})
    assert response.status_code == 503
    assert response.json()["error"] == {
        "message": "the engine sleeps: wake it up first",
        "type": "overloaded_error",
        "param": None,
        "code": "engine_asleep",
    }
    assert "retry-after" not in response.headers
    server.ask("POST", "/wake_up")
    assert server.ask("POST", "/v1/completions", json={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "parameter", "words"),
    [
        ("/sleep?level=3", "level", "level: 3 is not supported, expected 1 or 2"),
        ("/sleep?level=deep", "level", "level: Input should be a valid integer"),
        ("/sleep?mode=wait", "mode", "mode: is not supported, expected no parameter but level"),
        ("/wake_up?tags=kv", "tags", "tags: 'kv' is not supported, expected a list of ['weights', 'kv_cache']"),
        ("/wake_up?level=1", "level", "level: is not supported, expected no parameter but tags"),
    ],
)
def test_what_is_not_there_is_a_400(path: str, parameter: str, words: str) -> None:
    server = Server()
    server.engine.is_sleeping = path.startswith("/wake_up")
    response = server.ask("POST", path)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == parameter
    assert response.json()["error"]["message"].startswith(words)
    assert server.is_sleeping() is path.startswith("/wake_up")


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (EngineBusy("the engine cannot sleep while 2 requests wait or run"), 409, "engine_busy"),
        (EngineUnavailable("the engine died"), 503, "engine_unavailable"),
    ],
)
def test_what_cannot_be_done(failure: Exception, status: int, code: str) -> None:
    server = Server()
    server.engine.failure = failure
    for path in ("/sleep", "/wake_up"):
        response = server.ask("POST", path)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert response.json()["error"]["message"] == str(failure)


@pytest.mark.parametrize("origin", ["http://elsewhere", "null", "http://test.elsewhere"])
@pytest.mark.parametrize("path", ["/sleep", "/wake_up"])
def test_pages_of_other_origins_may_not(path: str, origin: str) -> None:
    """Their browser sends such a request without asking, as it has no body."""
    server = Server()
    response = server.ask("POST", path, headers={"origin": origin})
    assert response.status_code == 403
    assert origin in response.json()["error"]["message"]
    assert server.engine.asked == []
    for settings, own in (
        ({}, "http://test"),
        ({"allowed_origins": [origin]}, origin),
        ({"allowed_origins": ["*"]}, origin),
    ):
        assert Server(**settings).ask("POST", path, headers={"origin": own}).status_code == 200


@pytest.mark.parametrize(("method", "path"), [("POST", "/sleep"), ("POST", "/wake_up"), ("GET", "/is_sleeping")])
def test_they_need_a_key_and_to_be_enabled(method: str, path: str) -> None:
    assert Server(enabled=False).ask(method, path).status_code == 404
    server = Server(api_key=["secret"])
    assert server.ask(method, path).status_code == 401
    assert server.ask(method, path, headers={"authorization": "Bearer secret"}).status_code == 200
    assert path in server.app.openapi()["paths"]
    assert path not in Server(enabled=False).app.openapi()["paths"]
