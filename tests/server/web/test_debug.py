"""The page's files, the demo database, and what is not there where it should not be."""

import asyncio
import re
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient, Response

from lightvllm.config import DEFAULT_MODEL, ServerConfig
from lightvllm.server.app import build_app
from lightvllm.server.demo import MAX_ROWS, MAX_SQL_CHARACTERS, MAX_WAITING
from lightvllm.sql import DEMO_QUESTIONS

WEB = Path(str(resources.files("lightvllm.server"))) / "web"


def ask(*calls: tuple[Any, ...], model: Path = DEFAULT_MODEL, **settings: Any) -> list[Response]:
    """The answers to (method, path, JSON body) each, all sent at once."""
    # Nothing here asks the engine for more.
    engine = SimpleNamespace(config=SimpleNamespace(model=str(model), enable_sleep_mode=False))
    app = build_app(engine, ServerConfig(**settings), model_names=["m"])  # type: ignore[arg-type]

    async def main() -> list[Response]:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            return await asyncio.gather(
                *(client.request(method, path, json=body[0] if body else None) for method, path, *body in calls)
            )

    return asyncio.run(main())


def query(sql: str) -> dict[str, Any]:
    (response,) = ask(("POST", "/demo/sql", {"sql": sql}))
    assert response.status_code == 200
    return response.json()


def test_the_page_allows_only_its_own_scripts() -> None:
    (response,) = ask(("GET", "/"))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_everything_the_page_names_is_served() -> None:
    (page,) = ask(("GET", "/"))
    named = set(re.findall(r'(?:src|href)="(static/[^"]+)"', page.text))
    for script in WEB.glob("*.js"):
        named |= {f"static/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())}
    assert len(named) > 5
    responses = ask(*(("GET", f"/{path}") for path in sorted(named)))
    assert {response.status_code for response in responses} == {200}
    kinds = {path: response.headers["content-type"] for path, response in zip(sorted(named), responses, strict=True)}
    assert {kind for path, kind in kinds.items() if path.endswith(".js")} == {"text/javascript; charset=utf-8"}


@pytest.mark.parametrize(
    "path", ["/static/nothing.js", "/static/..%2Fdebug.py", "/static/%2e%2e%2fdebug.py", "/static/"]
)
def test_nothing_else_is_served(path: str) -> None:
    (response,) = ask(("GET", path))
    assert response.status_code == 404


def test_scripts_write_no_html_and_load_nothing_from_elsewhere() -> None:
    for file in WEB.iterdir():
        text = file.read_text()
        assert len(text.splitlines()) < 450, file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), file.name
        urls = set(re.findall(r"https?://[^\s\"')]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not urls, f"{file.name} names {urls}"


def test_the_engine_can_be_hidden() -> None:
    (response,) = ask(("GET", "/debug/engine"), debug_engine=False)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_an_interval_out_of_range_is_refused() -> None:
    (response,) = ask(("GET", "/debug/engine?interval=-1"))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "interval"


def test_the_demo_is_for_the_default_model_only(tmp_path: Path) -> None:
    responses = ask(("GET", "/demo/schema"), ("POST", "/demo/sql", {"sql": "SELECT 1"}), model=tmp_path)
    assert [response.status_code for response in responses] == [404, 404]


def test_the_demo_says_what_can_be_asked() -> None:
    (response,) = ask(("GET", "/demo/schema"))
    assert response.json()["questions"] == list(DEMO_QUESTIONS)
    assert [line.split(":")[0] for line in response.json()["schema_prompt"].splitlines()] == [
        "dairies", "cheeses", "tastings",
    ]  # fmt: skip


def test_rows_of_a_query() -> None:
    result = query(
        "```sql\nSELECT name, price, NULL FROM cheeses WHERE milk = 'goat' ORDER BY price DESC LIMIT 2;\n```"
    )
    assert result["columns"] == ["name", "price", "NULL"]
    assert result["rows"] == [["Geissbock", 33.3, None], ["Cendré", 31.7, None]]
    assert result["error"] is None
    assert not result["truncated"]


def test_rows_are_bounded_in_number_and_size() -> None:
    result = query("SELECT 1 FROM tastings, tastings")
    assert len(result["rows"]) == MAX_ROWS
    assert result["truncated"]
    assert len(query("SELECT hex(zeroblob(100000))")["rows"][0][0]) < 1000


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("SELECT x'00ff'", "x'00ff'"),
        ("SELECT 9007199254740993", "9007199254740993"),
        ("SELECT 9e999", "inf"),
        ("SELECT '<img src=x onerror=alert(1)>'", "<img src=x onerror=alert(1)>"),
    ],
)
def test_values_that_json_does_not_have(sql: str, value: str) -> None:
    assert query(sql)["rows"] == [[value]]


@pytest.mark.parametrize(
    "sql",
    ["DELETE FROM cheeses", "PRAGMA query_only = OFF", "ATTACH '/tmp/x' AS x", "SELECT 1; SELECT 2", "no SQL", ";"],
)
def test_what_is_no_query_is_an_error_in_words(sql: str) -> None:
    assert query(sql)["error"]
    assert query("SELECT count(*) FROM cheeses")["rows"] == [[18]]


def test_an_endless_query_is_stopped() -> None:
    result = query("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
    assert "stopped after" in result["error"]


def test_too_many_at_once_are_sent_away() -> None:
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000) SELECT count(*) FROM n"
    responses = ask(*[("POST", "/demo/sql", {"sql": slow})] * (MAX_WAITING + 3))
    assert sorted(response.status_code for response in responses) == [200] * MAX_WAITING + [503] * 3
    refused = next(response for response in responses if response.status_code == 503)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "overloaded"


@pytest.mark.parametrize(
    "body", [{}, {"sql": ""}, {"sql": 1}, {"sql": "SELECT 1", "db": "x"}, {"sql": "x" * (MAX_SQL_CHARACTERS + 1)}]
)
def test_a_bad_body_is_refused(body: dict[str, Any]) -> None:
    assert ask(("POST", "/demo/sql", body))[0].status_code == 400


def test_the_page_needs_no_key_and_everything_else_does() -> None:
    paths = ("/", "/static/app.js", "/debug/engine", "/demo/schema")
    responses = ask(*(("GET", path) for path in paths), api_key=["secret"])
    assert [response.status_code for response in responses] == [200, 200, 401, 401]
