"""Keys, request ids, and pages of other origins."""

import asyncio
import functools
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient, Response

from lightvllm.config import ServerConfig
from lightvllm.engine.async_engine import Health
from lightvllm.server.app import build_app
from lightvllm.server.metrics import Metrics
from tests.server.fakes import FakeEngine


@functools.cache
def engine() -> FakeEngine:
    made = FakeEngine()
    made.status = Health("ok")
    return made


def ask(method: str, path: str, *, headers: Any = None, root_path: str = "", **settings: Any) -> Response:
    app = build_app(engine(), ServerConfig(**settings), model_names=["m"], metrics=Metrics("m"))  # type: ignore[arg-type]

    async def main() -> Response:
        transport = ASGITransport(app, root_path=root_path)
        async with AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(main())


GUARDED = ["/v1/models", "/v1/models/m", "/version", "/load", "/metrics", "/docs", "/openapi.json", "/debug/engine"]
GUARDED += ["/demo/schema", "/nothing", "/health/", "/ping/x", "/staticx", "/HEALTH"]


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer  ", "Basic one", "one", "Bearer oné"]
)
def test_a_guarded_path_needs_a_key(path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization.encode()}
    response = ask("GET", path, headers=headers, api_key=["one", "two"])
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert "one" not in error["message"].lower().split()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/demo/sql"])
def test_what_is_posted_needs_a_key(path: str) -> None:
    assert ask("POST", path, api_key=["one"]).status_code == 401


@pytest.mark.parametrize("authorization", ["Bearer one", "bearer two", "Bearer  two ", "BEARER one"])
def test_any_of_the_keys_opens(authorization: str) -> None:
    assert ask("GET", "/v1/models", headers={"authorization": authorization}, api_key=["one", "two"]).status_code == 200


def test_a_key_may_have_any_characters() -> None:
    headers = {"authorization": "Bearer schlüssel".encode()}
    assert ask("GET", "/v1/models", headers=headers, api_key=["schlüssel"]).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ping", "/"])
def test_health_and_the_page_need_no_key(path: str) -> None:
    assert ask("GET", path, api_key=["one"]).status_code == 200


def test_the_pages_files_need_no_key() -> None:
    assert ask("GET", "/static/nothing", api_key=["one"]).status_code == 404


@pytest.mark.parametrize(
    ("path", "status"), [("/llm/health", 200), ("/llm/v1/models", 401), ("/llm/static/../load", 401)]
)
def test_a_proxys_path_changes_nothing(path: str, status: int) -> None:
    assert ask("GET", path, root_path="/llm", api_key=["one"]).status_code == status


def test_without_keys_everything_is_open() -> None:
    assert ask("GET", "/v1/models").status_code == 200


# ---- request ids


def test_an_answer_has_the_requests_id() -> None:
    assert ask("GET", "/version", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"


@pytest.mark.parametrize("access_log", [True, False])
@pytest.mark.parametrize("given", ["", "x" * 129, "a\tb", "é", "a\x7f"])
def test_an_id_that_cannot_be_logged_is_replaced(given: str, access_log: bool) -> None:
    answer = ask("GET", "/version", headers={"x-request-id": given.encode()}, access_log=access_log)
    assert answer.headers["x-request-id"] != given
    assert len(answer.headers["x-request-id"]) == 32


def test_errors_have_an_id_too() -> None:
    assert ask("GET", "/nothing", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"
    assert ask("GET", "/load", headers={"x-request-id": "abc"}, api_key=["k"]).headers["x-request-id"] == "abc"


# ---- other origins


def test_other_origins_are_not_let_in_unless_named() -> None:
    assert "access-control-allow-origin" not in ask("GET", "/version", headers={"origin": "http://a"}).headers
    named = ask("GET", "/version", headers={"origin": "http://a"}, allowed_origins=["http://b"])
    assert "access-control-allow-origin" not in named.headers


def test_a_named_origin_may_read_answers_and_errors() -> None:
    for path, keys in (("/version", None), ("/nothing", None), ("/version", ["k"])):
        answer = ask("GET", path, headers={"origin": "http://a"}, allowed_origins=["http://a"], api_key=keys)
        assert answer.headers["access-control-allow-origin"] == "http://a", path


def test_a_browser_may_ask_first_without_a_key() -> None:
    headers = {
        "origin": "http://a",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    answer = ask("OPTIONS", "/v1/completions", headers=headers, allowed_origins=["http://a"], api_key=["k"])
    assert answer.status_code == 200
    assert "authorization" in answer.headers["access-control-allow-headers"]
