"""The application: errors in OpenAI's form whatever happens, the small routes, and the description of all."""

import asyncio
import json
import logging
import re
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient, Response
from starlette.responses import StreamingResponse

from lightvllm import __version__
from lightvllm.config import ServerConfig
from lightvllm.engine.async_engine import Health, RequestFailed
from lightvllm.errors import EngineOverloaded, EngineUnavailable, ParameterError
from lightvllm.server.app import build_app
from lightvllm.server.errors import ErrorResponse
from lightvllm.server.metrics import Metrics
from tests.server.fakes import FakeEngine


class Server:
    """An application around a fake engine."""

    def __init__(self, model_names: tuple[str, ...] = ("m", "owner/m"), **settings: Any) -> None:
        self.engine = FakeEngine()
        self.engine.status = Health("ok")
        config = ServerConfig(**settings)
        self.app = build_app(self.engine, config, model_names=list(model_names), metrics=Metrics("m"))  # type: ignore[arg-type]

    def ask(self, method: str, path: str, **request: Any) -> Response:
        async def main() -> Response:
            async with AsyncClient(transport=ASGITransport(self.app), base_url="http://test") as client:
                return await client.request(method, path, **request)

        return asyncio.run(main())

    def fail(self, error: Exception, path: str = "/fail") -> Response:
        """The answer of a route that raises."""

        @self.app.get(path)
        async def fail() -> None:
            raise error

        return self.ask("GET", path)


def error_of(response: Response) -> dict[str, Any]:
    """The error object, which has OpenAI's form and nothing else."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    ErrorResponse.model_validate(body)
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["message"]
    return body["error"]


@pytest.fixture(scope="module")
def server() -> Server:
    return Server()


# ---- errors


@pytest.mark.parametrize(
    ("raised", "status", "expected"),
    [
        (ParameterError("top_p", "top_p: 2"), 400, ("top_p: 2", "invalid_request_error", "top_p", None)),
        (ValueError("prompt: empty"), 400, ("prompt: empty", "invalid_request_error", "prompt", None)),
        (ValueError("messages[0].x: bad"), 400, ("messages[0].x: bad", "invalid_request_error", "messages", None)),
        (ValueError("Bad luck"), 400, ("Bad luck", "invalid_request_error", None, None)),
        (EngineOverloaded("full", 7.4), 503, ("full", "overloaded_error", None, "overloaded")),
        (EngineUnavailable("down"), 503, ("down", "overloaded_error", None, "engine_unavailable")),
        (RequestFailed("deadline", "late"), 504, ("late", "server_error", None, "deadline_exceeded")),
        (RequestFailed("engine", "thrice"), 500, ("thrice", "server_error", None, "engine_failed")),
        (RequestFailed("shutdown", "bye"), 503, ("bye", "overloaded_error", None, "shutting_down")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_exception_has_its_answer(raised: Exception, status: int, expected: tuple[str | None, ...]) -> None:
    response = Server().fail(raised)
    assert response.status_code == status
    assert tuple(error_of(response).values()) == expected
    assert ("retry-after" in response.headers) == (status == 503)


def test_retry_after_is_what_the_engine_says() -> None:
    assert Server().fail(EngineOverloaded("full", 7.4)).headers["retry-after"] == "7"
    assert Server().fail(EngineOverloaded("full", 0.1)).headers["retry-after"] == "1"


@pytest.mark.parametrize("bug", [KeyError("secret"), AssertionError("secret"), json.JSONDecodeError("secret", "", 0)])
def test_a_bug_is_logged_and_not_shown(bug: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        response = Server().fail(bug)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert error_of(response)["type"] == "server_error"
    logged = next(record for record in caplog.records if record.name == "lightvllm.server.errors")
    assert response.headers["x-request-id"] in logged.getMessage()
    assert logged.exc_info is not None
    assert logged.exc_info[1] is bug


def test_a_stream_that_breaks_is_left_unfinished() -> None:
    server = Server()

    async def pieces() -> Any:
        yield b"one"
        raise KeyError("broken")

    @server.app.get("/broken")
    async def broken() -> StreamingResponse:
        return StreamingResponse(pieces())

    messages: list[dict[str, Any]] = []

    async def main() -> None:
        async def receive() -> dict[str, Any]:
            return await asyncio.Future()

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "GET", "path": "/broken", "headers": [], "query_string": b""}
        await server.app({**scope, "http_version": "1.1", "scheme": "http", "server": ("t", 80)}, receive, send)

    asyncio.run(main())
    assert [message["type"] for message in messages] == ["http.response.start", "http.response.body"]
    assert messages[1]["more_body"]


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/v1/models%00", "/v1/embeddings", "/%0anext: line", "/" + "x" * 5000]
)
def test_an_unknown_path_is_a_404(server: Server, path: str) -> None:
    response = server.ask("GET", path)
    assert response.status_code == 404
    message = error_of(response)["message"]
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/completions"), ("DELETE", "/v1/models"), ("PUT", "/health"), ("POST", "/")]
)
def test_another_method_is_a_405_that_names_the_right_one(server: Server, method: str, path: str) -> None:
    response = server.ask(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] in error_of(response)["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"content": b"{}", "headers": {"content-type": "text/plain"}}, 415),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b'{"a": "\xff"}', "headers": {"content-type": "application/json"}}, 400),
        ({"content": b'{"model": "' + b"x" * 2000 + b'"}', "headers": {"content-type": "application/json"}}, 413),
        ({"json": []}, 400),
        ({"json": {}}, 400),
    ],
)
def test_what_is_no_request_is_refused(path: str, request_: dict[str, Any], status: int) -> None:
    response = Server(max_request_bytes=1000).ask("POST", path, **request_)
    assert response.status_code == status
    error_of(response)


BODIES = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
}


@pytest.mark.parametrize("path", BODIES)
def test_an_unknown_model_is_a_404(server: Server, path: str) -> None:
    response = server.ask("POST", path, json={**BODIES[path], "model": "gpt\n-4"})
    assert response.status_code == 404
    error = error_of(response)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert error["message"].isprintable()


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("model", ["m", "owner/m"])
def test_every_name_of_the_model_is_served(server: Server, path: str, model: str) -> None:
    assert server.ask("POST", path, json={**BODIES[path], "model": model}).status_code == 200


@pytest.mark.parametrize("path", BODIES)
def test_while_the_server_stops_new_work_is_turned_away(path: str) -> None:
    server = Server()
    server.app.state.draining = True
    response = server.ask("POST", path, json=BODIES[path])
    assert response.status_code == 503
    assert "retry-after" in response.headers
    assert error_of(response)["code"] == "shutting_down"
    assert server.engine.submitted == []
    assert server.ask("GET", "/health").status_code == 503
    assert server.ask("GET", "/v1/models").status_code == 200


def test_more_completions_than_the_server_makes_are_refused() -> None:
    server = Server(max_completions=3)
    assert server.ask("POST", "/v1/completions", json={"prompt": "a", "n": 3}).status_code == 200
    error = error_of(server.ask("POST", "/v1/completions", json={"prompt": "a", "n": 4}))
    assert (error["param"], "3" in error["message"]) == ("n", True)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_a_template_of_the_requests_own_needs_trust(path: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "chat_template": "{{ messages[0].content }}"}
    assert error_of(Server().ask("POST", path, json=body))["param"] == "chat_template"
    assert Server(trust_request_chat_template=True).ask("POST", path, json=body).status_code == 200
    assert Server().ask("POST", path, json={**body, "chat_template": "default"}).status_code == 200


@pytest.mark.parametrize("template", ["/etc/passwd", "../default", "nothing"])
def test_a_templates_name_is_never_a_path(template: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "chat_template": template}
    for trusts in (False, True):
        response = Server(trust_request_chat_template=trusts).ask("POST", "/tokenize", json=body)
        assert response.status_code == 400
        assert error_of(response)["param"] == "chat_template"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_a_text_that_could_never_fit_is_refused_before_it_is_tokenized(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    monkeypatch.setattr(type(server.engine.tokenizer), "encode", None)
    text = "a" * (server.engine.max_model_len * 128 + 1)
    body = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
    response = server.ask("POST", path, json=body)
    assert response.status_code == 400
    assert error_of(response)["param"] == next(iter(body))


# ---- the small routes


def test_models_are_listed_under_each_name(server: Server) -> None:
    answer = server.ask("GET", "/v1/models").json()
    assert answer["object"] == "list"
    assert [card["id"] for card in answer["data"]] == ["m", "owner/m"]
    assert {card["max_model_len"] for card in answer["data"]} == {server.engine.max_model_len}
    assert {card["root"] for card in answer["data"]} == {"m"}  # and not where it lies
    for card in answer["data"]:
        assert server.ask("GET", f"/v1/models/{card['id']}").json() == card


@pytest.mark.parametrize("name", ["x", "owner", "owner/", "m/", "", "owner%2Fx"])
def test_a_model_that_is_not_served_is_a_404(server: Server, name: str) -> None:
    response = server.ask("GET", f"/v1/models/{name}")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


def test_an_escaped_slash_is_a_slash(server: Server) -> None:
    assert server.ask("GET", "/v1/models/owner%2Fm").json()["id"] == "owner/m"


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")])
def test_health_is_the_engines(method: str, path: str) -> None:
    server = Server()
    answer = server.ask(method, path)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "message": ""})
    server.engine.status = Health("restarting", "the engine died 3 times")
    answer = server.ask(method, path)
    assert answer.status_code == 503
    assert answer.json() == {"status": "restarting", "message": "the engine died 3 times"}
    assert int(answer.headers["retry-after"]) > 0


def test_version(server: Server) -> None:
    assert server.ask("GET", "/version").json() == {"version": __version__}


def test_load_is_what_waits_or_runs(server: Server) -> None:
    assert server.ask("GET", "/load").json() == {"server_load": 0}

    async def forever() -> None:
        await asyncio.Future()

    async def main() -> Response:
        server.engine.running["a"] = asyncio.ensure_future(forever())
        async with AsyncClient(transport=ASGITransport(server.app), base_url="http://test") as client:
            answer = await client.get("/load")
        server.engine.running.pop("a").cancel()
        return answer

    assert asyncio.run(main()).json() == {"server_load": 1}


def test_metrics_are_text(server: Server) -> None:
    answer = server.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "vllm:num_requests_running" in answer.text


def test_the_engines_steps_can_be_switched_off() -> None:
    assert "/debug/engine" in Server().ask("GET", "/openapi.json").json()["paths"]
    assert Server(debug_engine=False).ask("GET", "/debug/engine").status_code == 404


# ---- the description


@pytest.fixture(scope="module")
def description(server: Server) -> dict[str, Any]:
    return server.ask("GET", "/openapi.json").json()


def test_every_reference_leads_somewhere(description: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(description)))
    assert {"ChatCompletionRequest", "ChatCompletion", "CompletionRequest", "Completion", "ErrorResponse"} <= names
    assert names - set(description["components"]["schemas"]) == set()
    assert "$defs" not in json.dumps(description)


def test_every_route_says_with_what_it_can_fail(description: dict[str, Any]) -> None:
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            statuses = set(operation["responses"])
            assert "422" not in statuses, path
            assert "503" in statuses, path
            if path not in ("/health", "/ping"):
                assert {"401", "500"} <= statuses, path
            if method == "post" and path != "/ping":
                assert "400" in statuses, path
                assert operation["requestBody"]["required"], path
            assert operation["summary"], path


def test_bodies_are_described_with_their_bounds_and_meanings(description: dict[str, Any]) -> None:
    schema = description["components"]["schemas"]["ChatCompletionRequest"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["messages"]
    temperature = schema["properties"]["temperature"]
    assert temperature["description"]
    assert {"type": "number", "minimum": 0, "maximum": 2} in temperature["anyOf"]
    assert {"type": "null"} in schema["properties"]["stream"]["anyOf"]
    assert schema["properties"]["audio"]["type"] == "null"


def test_keys_are_described_where_there_are_any(description: dict[str, Any]) -> None:
    assert "security" not in description
    guarded = Server(api_key=["k"]).ask("GET", "/openapi.json", headers={"authorization": "Bearer k"}).json()
    assert guarded["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert guarded["security"] == [{"key": []}]


def test_docs_are_a_page(server: Server) -> None:
    answer = server.ask("GET", "/docs")
    assert answer.status_code == 200
    assert "/openapi.json" in answer.text
