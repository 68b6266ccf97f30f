"""OpenTelemetry traces: one span for each request of the engine's, with the name and the attributes that vLLM gives it.

The attributes follow OpenTelemetry's conventions for generative AI, and vLLM's additions to them. Optional: without an
endpoint nothing is imported, and nothing happens.
"""

import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lightvllm.engine.observer import EngineObserver, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


# The context that the spans of the current task's HTTP request belong to, if its client sent one.
_parent: ContextVar[Any] = ContextVar("parent", default=None)


class Tracing(EngineObserver):
    """Makes spans of requests that have ended, and sends them in batches from a thread of its own.

    Args:
        endpoint: the URL that OTLP over HTTP is sent to, as http://localhost:4318/v1/traces. None: no traces.
        model_name: the first name the model is served under.
        exporter: takes the spans in place of the endpoint.

    Raises:
        ValueError: the endpoint is no HTTP URL, or OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str | None, model_name: str, *, exporter: "SpanExporter | None" = None) -> None:
        self.is_on = endpoint is not None or exporter is not None
        self._model_name = model_name
        self._parents: dict[str, Any] = {}  # request id -> the context its span belongs to
        if not self.is_on:
            return
        if endpoint is not None:
            _check_url(endpoint)
        try:
            from opentelemetry import trace
            from opentelemetry.context import Context
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ValueError(
                f"otlp_traces_endpoint: OpenTelemetry is missing ({error}): pip install 'lightvllm[otel]'"
            ) from None
        self._trace = trace
        self._no_parent = Context()
        # Our name for the service gives way to what the SDK's own variables say (OTEL_SERVICE_NAME ...).
        ours = Resource.create().merge(Resource({"service.name": "lightvllm"}))
        resource = ours.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = exporter or OTLPSpanExporter(endpoint=endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("lightvllm")

    def on_add(self, request_id: str) -> None:
        if self.is_on and (parent := _parent.get()) is not None:
            self._parents[request_id] = parent

    def on_finish(self, record: RequestRecord) -> None:
        if not self.is_on:
            return
        # The record's times are monotonic, a span's are not.
        now, now_ns = time.monotonic(), time.time_ns()
        span = self._tracer.start_span(
            "llm_request",
            context=self._parents.pop(record.request_id, self._no_parent),
            kind=self._trace.SpanKind.SERVER,
            start_time=now_ns - int((now - record.arrival_time) * 1e9),
            attributes=_attributes(record) | {"gen_ai.response.model": self._model_name},
        )
        if "error" in record.finish_reasons:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(end_time=now_ns - int((now - record.finished_time) * 1e9))

    def close(self, timeout: float = 5.0) -> bool:
        """Send what is left, and end. False: it took longer than so many seconds, and some spans may be lost."""
        if not self.is_on:
            return True
        # The SDK waits for half a minute where nobody answers, and cannot be told otherwise.
        thread = threading.Thread(target=self._provider.shutdown, name="tracing-shutdown", daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            self._exporter.shutdown()  # so that it does not try again
            return False
        return True


class TraceParent:
    """ASGI middleware: what the engine is asked to do for a request becomes part of the trace that its client began.

    It is read from the headers `traceparent` and `tracestate` (W3C Trace Context). For a `Tracing` that is on.
    """

    def __init__(self, app: ASGIApp) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app = app
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if "traceparent" not in headers:
            await self._app(scope, receive, send)
            return
        token = _parent.set(self._propagator.extract(headers))
        try:
            await self._app(scope, receive, send)
        finally:
            _parent.reset(token)


def _check_url(endpoint: str) -> None:
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise ValueError(
            f"otlp_traces_endpoint: {endpoint!r} is no HTTP URL, expected one as http://localhost:4318/v1/traces"
        )


def _attributes(record: RequestRecord) -> dict[str, Any]:
    """What vLLM says of a request, but for the times of what it did not come to."""
    params = record.params
    arrival, scheduled = record.arrival_time, record.first_scheduled_time
    first, last = record.first_token_time, record.last_token_time
    seconds = {
        "time_to_first_token": (arrival, first),
        "e2e": (arrival, record.finished_time),
        "time_in_queue": (arrival, scheduled),
        "time_in_model_prefill": (scheduled, first),
        "time_in_model_decode": (first, last),
        "time_in_model_inference": (scheduled, last),
    }
    attributes: dict[str, Any] = {
        "gen_ai.request.id": record.request_id,
        "gen_ai.request.n": params.n,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.usage.prompt_tokens": record.num_prompt_tokens,
        "gen_ai.usage.completion_tokens": sum(record.num_output_tokens),
        "gen_ai.response.finish_reasons": record.finish_reasons,
    }
    if params.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = params.max_tokens
    for name, (start, end) in seconds.items():
        if start is not None and end is not None:
            attributes[f"gen_ai.latency.{name}"] = end - start
    return attributes
