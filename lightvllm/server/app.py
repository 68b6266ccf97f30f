"""The application: which routes there are, what lies around them, and how they are described."""

import time
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

import lightvllm
from lightvllm.config import DEFAULT_MODEL, ServerConfig
from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.server.body import Bodies
from lightvllm.server.debug import engine_router, page_router
from lightvllm.server.demo import demo_router
from lightvllm.server.errors import CatchErrors, answer_http_exception, documented
from lightvllm.server.generate import routes as generation
from lightvllm.server.generate.chunks import ChatChunk, ChatCompletion, Completion
from lightvllm.server.limits import MAX_BODIES
from lightvllm.server.logs import AccessLog
from lightvllm.server.metrics import HttpMetrics, Metrics
from lightvllm.server.openapi import complete_openapi
from lightvllm.server.protocol.chat import ChatCompletionRequest
from lightvllm.server.protocol.completion import CompletionRequest
from lightvllm.server.protocol.tokenization import DetokenizeRequest, TokenizeChatRequest, TokenizePromptRequest
from lightvllm.server.routes import health, models, sleep, tokenize
from lightvllm.server.security import RequestId, RequireApiKey
from lightvllm.server.tracing import TraceParent

_BODIES: list[type[BaseModel]] = [
    ChatCompletionRequest,
    CompletionRequest,
    TokenizePromptRequest,
    TokenizeChatRequest,
    DetokenizeRequest,
]
_ANSWERS: list[type[msgspec.Struct]] = [ChatCompletion, ChatChunk, Completion]
_DESCRIPTION = "OpenAI's API, with vLLM's extras. A field is honoured, or refused with a 400 that names it."


def build_app(
    engine: AsyncEngine, config: ServerConfig, *, model_names: list[str], metrics: Metrics | None = None
) -> FastAPI:
    """The application that serves an engine.

    Its `state` has `engine`, `config`, `model_names`, and `draining`: set this to answer new work with 503.

    Args:
        model_names: what requests may call the model; the first is the one in answers to requests that do not say.
        metrics: shown at /metrics; without, there is no such path.
    """
    keys = config.api_keys()
    app = FastAPI(
        title="LightvLLM",
        version=lightvllm.__version__,
        description=_DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
        middleware=_middleware(config, keys, metrics),
        exception_handlers={HTTPException: answer_http_exception, RequestValidationError: answer_http_exception},
    )
    app.state.engine = engine
    app.state.config = config
    app.state.model_names = list(model_names)
    app.state.created = int(time.time())
    app.state.draining = False
    app.state.bodies = Bodies(MAX_BODIES * config.max_request_bytes)
    for router in _routers(engine, config, metrics):
        for route in router.routes:
            if isinstance(route, APIRoute) and route.status_code is None:
                route.status_code = 200  # FastAPI would ask the class of the response, and a stream's does not say
        app.include_router(router)
    complete_openapi(app, _BODIES, _ANSWERS, has_keys=bool(keys))
    return app


def _middleware(config: ServerConfig, keys: frozenset[str], metrics: Metrics | None) -> list[Middleware]:
    """From the outside in. Keys come after errors and CORS, so that a page can read why it is turned away."""
    around = [] if metrics is None else [Middleware(HttpMetrics, metrics)]
    if config.access_log:
        around.append(Middleware(AccessLog))
    if config.otlp_traces_endpoint is not None:
        around.append(Middleware(TraceParent))
    around.append(Middleware(RequestId))
    if config.allowed_origins:
        around.append(
            Middleware(
                CORSMiddleware,
                allow_origins=config.allowed_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            )
        )
    around.append(Middleware(CatchErrors))
    if keys:
        around.append(Middleware(RequireApiKey, keys))
    return around


def _routers(engine: AsyncEngine, config: ServerConfig, metrics: Metrics | None) -> list[APIRouter]:
    routers = [generation.router, models.router, tokenize.router, health.router, page_router()]
    if metrics is not None:
        routers.append(_metrics_router(metrics))
    if config.debug_engine:
        routers.append(engine_router(engine, config.client_timeout))
    if engine.config.enable_sleep_mode:
        routers.append(sleep.router)
    if engine.config.model == str(DEFAULT_MODEL):
        routers.append(demo_router())
    return routers


def _metrics_router(metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["health"])
    described: dict[int | str, Any] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @router.get(
        "/metrics", summary="Prometheus' metrics", response_class=Response, responses={**documented(), **described}
    )
    async def show_metrics() -> Response:
        page, content_type = metrics.render()
        return Response(page, headers={"content-type": content_type})

    return router
