"""One span a request: its name, attributes, times and parent; over OTLP, and with nobody there to take it."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from httpx2 import ASGITransport, AsyncClient
from hypothesis import given
from hypothesis import strategies as st
from starlette.middleware import Middleware

from lightvllm.engine.observer import RequestRecord
from lightvllm.sampling_params import SamplingParams
from lightvllm.server.tracing import TraceParent, Tracing

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


def record(**changes: Any) -> RequestRecord:
    """A request that ended just now, 3.5 seconds after it arrived."""
    now = time.monotonic()
    values: dict[str, Any] = {
        "request_id": "cmpl-1",
        "params": SamplingParams(max_tokens=100, temperature=0.5, top_p=0.9),
        "num_prompt_tokens": 40,
        "num_cached_tokens": 16,
        "num_output_tokens": [11],
        "finish_reasons": ["stop"],
        "arrival_time": now - 3.5,
        "first_scheduled_time": now - 3.25,
        "first_token_time": now - 2.5,
        "last_token_time": now - 0.5,
        "finished_time": now,
    }
    return RequestRecord(**values | changes)


def add(tracing: Tracing, *request_ids: str, headers: dict[str, str] | None = None) -> None:
    """The engine accepts what an HTTP request with these headers asks for."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for request_id in request_ids:
            tracing.on_add(request_id)

    async def nothing(*_: Any) -> Any: ...

    raw = [(name.lower().encode(), value.encode("utf-8", "replace")) for name, value in (headers or {}).items()]
    asyncio.run(TraceParent(app)({"type": "http", "headers": raw}, nothing, nothing))


def spans_of(*records: RequestRecord, headers: dict[str, str] | None = None) -> tuple[ReadableSpan, ...]:
    exporter = InMemorySpanExporter()
    tracing = Tracing(None, "some/model", exporter=exporter)
    add(tracing, *(each.request_id for each in records), headers=headers)
    for each in records:
        tracing.on_finish(each)
    assert tracing.close()
    return exporter.get_finished_spans()


def test_a_span_has_vllms_name_and_attributes() -> None:
    (span,) = spans_of(record())
    assert span.name == "llm_request"
    assert span.kind is SpanKind.SERVER
    assert span.parent is None
    assert span.status.status_code is StatusCode.UNSET
    attributes = dict(span.attributes or {})
    latency = {name: value for name, value in attributes.items() if name.startswith("gen_ai.latency.")}
    assert latency == pytest.approx(
        {
            "gen_ai.latency.time_to_first_token": 1.0,
            "gen_ai.latency.e2e": 3.5,
            "gen_ai.latency.time_in_queue": 0.25,
            "gen_ai.latency.time_in_model_prefill": 0.75,
            "gen_ai.latency.time_in_model_decode": 2.0,
            "gen_ai.latency.time_in_model_inference": 2.75,
        }
    )
    assert {name: value for name, value in attributes.items() if name not in latency} == {
        "gen_ai.request.id": "cmpl-1",
        "gen_ai.request.n": 1,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.usage.prompt_tokens": 40,
        "gen_ai.usage.completion_tokens": 11,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.model": "some/model",
    }


def test_a_span_lasts_from_arrival_to_end() -> None:
    before = time.time_ns()
    (span,) = spans_of(record())
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time == pytest.approx(3.5e9, abs=1e3)
    assert before - 1e6 <= span.end_time + 1e8
    assert abs(span.end_time - time.time_ns()) < 5e9


def test_a_request_that_never_ran_has_no_phases() -> None:
    nothing = dict.fromkeys(("first_scheduled_time", "first_token_time", "last_token_time"))
    params = SamplingParams(n=2, max_tokens=None)
    (span,) = spans_of(record(**nothing, params=params, finish_reasons=["error"] * 2, num_output_tokens=[0, 0]))
    attributes = span.attributes or {}
    assert [name for name in attributes if name.startswith("gen_ai.latency.")] == ["gen_ai.latency.e2e"]
    assert attributes["gen_ai.usage.completion_tokens"] == 0
    assert "gen_ai.request.max_tokens" not in attributes
    assert span.status.status_code is StatusCode.ERROR


def test_the_parent_comes_from_the_header() -> None:
    followed, other = spans_of(record(), record(request_id="cmpl-2"), headers={"Traceparent": TRACEPARENT})
    assert followed.parent is not None
    assert f"{followed.context.trace_id:032x}" == TRACE_ID
    assert f"{followed.parent.span_id:016x}" == PARENT_ID
    assert followed.context.span_id != other.context.span_id


def test_a_parent_is_one_requests_only_and_forgotten_with_it() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(None, "m", exporter=exporter)
    add(tracing, "cmpl-1", headers={"traceparent": TRACEPARENT})
    add(tracing, "cmpl-2", headers={"user-agent": "no trace"})
    for request_id in ("cmpl-2", "cmpl-1", "cmpl-1"):
        tracing.on_finish(record(request_id=request_id))
    assert tracing.close()
    assert [span.parent is not None for span in exporter.get_finished_spans()] == [False, True, False]
    assert tracing._parents == {}


def test_a_trace_ends_with_its_request() -> None:
    """The server keeps a connection, and its task, for other requests."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(None, "m", exporter=exporter)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tracing.on_add(scope["path"])

    async def serve() -> None:
        served = TraceParent(app)
        for path, headers in (("/1", [(b"traceparent", TRACEPARENT.encode())]), ("/2", [])):
            await served({"type": "http", "path": path, "headers": headers}, None, None)  # type: ignore[arg-type]

    asyncio.run(serve())
    for path in ("/1", "/2"):
        tracing.on_finish(record(request_id=path))
    assert tracing.close()
    assert [span.parent is not None for span in exporter.get_finished_spans()] == [True, False]


def test_the_trace_reaches_what_streams() -> None:
    """Starlette sends a stream from a task of its own."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(None, "m", exporter=exporter)
    app = FastAPI(middleware=[Middleware(TraceParent)])

    @app.get("/")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            tracing.on_add("cmpl-1")
            yield b"data: 1"

        return StreamingResponse(chunks())

    async def ask() -> None:
        async with AsyncClient(transport=ASGITransport(app=app), base_url="http://test") as client:
            assert (await client.get("/", headers={"traceparent": TRACEPARENT})).text == "data: 1"

    asyncio.run(ask())
    tracing.on_finish(record())
    assert tracing.close()
    (span,) = exporter.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == TRACE_ID


def test_a_parent_that_is_not_sampled_leaves_no_span() -> None:
    assert spans_of(record(), headers={"traceparent": TRACEPARENT[:-1] + "0"}) == ()


def test_a_bad_header_is_no_parent() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(None, "m", exporter=exporter)

    @given(st.text(max_size=80), st.text(max_size=80))
    def send(traceparent: str, tracestate: str) -> None:
        add(tracing, "cmpl-1", headers={"traceparent": traceparent, "tracestate": tracestate})
        tracing.on_finish(record())

    send()
    assert tracing.close()
    assert exporter.get_finished_spans()
    assert all(span.parent is None for span in exporter.get_finished_spans())


def test_without_an_endpoint_nothing_is_imported() -> None:
    code = (
        "import sys; from lightvllm.server.tracing import Tracing; t = Tracing(None, 'm'); "
        "t.on_add('a'); t.on_finish(None); assert t.close() and not t.is_on; "
        "assert not [name for name in sys.modules if name.startswith(('opentelemetry', 'torch'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ValueError, match=r"otlp_traces_endpoint: .*pip install 'lightvllm\[otel\]'"):
        Tracing("http://127.0.0.1:1/v1/traces", "m")


@pytest.mark.parametrize("endpoint", ["", "localhost:4317", "grpc://localhost:4317", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"otlp_traces_endpoint: .* is no HTTP URL, expected one as http://localhost"):
        Tracing(endpoint, "m")


# ---- over OTLP


class Collector(HTTPServer):
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, ExportTraceServiceRequest]] = []
        super().__init__(("127.0.0.1", 0), CollectorHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"


class CollectorHandler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Collector)
        self.server.taken.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_spans_arrive_at_the_collector(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    tracing = Tracing(collector.url, "some/model")
    add(tracing, "cmpl-1", headers={"traceparent": TRACEPARENT})
    for i in range(3):
        tracing.on_finish(record(request_id=f"cmpl-{i}"))
    assert tracing.close(timeout=10)
    assert {path for path, _ in collector.taken} == {"/v1/traces"}
    resources = [resource for _, taken in collector.taken for resource in taken.resource_spans]
    assert {a.value.string_value for r in resources for a in r.resource.attributes if a.key == "service.name"} == {
        "lightvllm"
    }
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    ids = [a.value.string_value for span in spans for a in span.attributes if a.key == "gen_ai.request.id"]
    assert ids == ["cmpl-0", "cmpl-1", "cmpl-2"]
    assert [span.parent_span_id.hex() for span in spans] == ["", PARENT_ID, ""]
    assert spans[1].trace_id.hex() == TRACE_ID


def test_the_service_is_named_as_opentelemetrys_variables_say(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat-in-production")
    tracing = Tracing(collector.url, "m")
    tracing.on_finish(record())
    assert tracing.close(timeout=10)
    attributes = collector.taken[0][1].resource_spans[0].resource.attributes
    assert [a.value.string_value for a in attributes if a.key == "service.name"] == ["chat-in-production"]


def test_a_collector_that_hangs_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        tracing = Tracing(f"http://127.0.0.1:{server.getsockname()[1]}/v1/traces", "m")
        start = time.monotonic()
        tracing.on_finish(record())
        assert time.monotonic() - start < 1
        assert not tracing.close(timeout=0.2)
        assert time.monotonic() - start < 3
