"""Schemathesis: requests made from /openapi.json, right ones and wrong ones, are answered as it says they are."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.sdk.conftest import serving
from tests.sdk.wire import Server

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SMALL = {"max_model_len": 96, "kv_cache_memory_bytes": 4 << 20, "max_completions": 4}
OPERATIONS = {
    "POST /v1/completions": 25,
    "POST /v1/chat/completions": 25,
    "POST /tokenize": 12,
    "POST /detokenize": 12,
    "GET /v1/models": 3,
    "GET /v1/models/{model_id}": 15,
    "GET /ping": 2,
    "POST /ping": 2,
    "GET /health": 2,
    "GET /version": 2,
    "GET /load": 2,
    "GET /metrics": 2,
    "GET /demo/schema": 2,
    "POST /demo/sql": 10,
}  # and how many requests
# Its stream has no end. It is tested in tests/server/web.
LEFT_OUT = {"GET /debug/engine"}


Schema = schemathesis.BaseSchema


@pytest.fixture(scope="module")
def api(assistant_folder: Path) -> Iterator[Schema]:
    """The description of a server of its own: one whose outputs are short, whatever a request asks for."""
    with serving({"model": str(assistant_folder), **SMALL}) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.fixture(scope="module")
def demo_api(server: Server) -> Schema:
    """The description of the default model's server: it has the demo's database, too."""
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_no_operation_is_forgotten(demo_api: Schema) -> None:
    assert {result.ok().label for result in demo_api.get_all_operations()} == OPERATIONS.keys() | LEFT_OUT


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_are_as_described(api: Schema, demo_api: Schema, label: str, mode: GenerationMode) -> None:
    method, path = label.split(" ")
    operation = (demo_api if path.startswith("/demo") else api)[path][method]
    wrong = mode is GenerationMode.NEGATIVE
    if wrong and not operation.body:
        return  # nothing that could be wrong about it

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=OPERATIONS[label],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def run(case: schemathesis.Case) -> None:
        response = case.call(timeout=20)
        case.validate_response(response, checks=CHECKS)
        # 504 is the deadline that the request brought; every other 5xx would be our fault.
        if response.status_code != 504:
            case.validate_response(response, checks=[not_a_server_error])
        if response.status_code >= 400:
            assert response.json().keys() == {"error"}
        else:
            assert not wrong, f"accepted: {case.as_curl_command()}"

    run()
