"""/health, /ping, /version, /load: what machines ask that look after the server."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

import lightvllm
from lightvllm.server.errors import RETRY_AFTER, documented


class HealthStatus(BaseModel):
    """Whether requests are answered."""

    status: str = Field(description="ok; else starting, restarting, hung, stopping or failed.")
    message: str = Field(description="What is being done about it.")


class Version(BaseModel):
    """Of the server."""

    version: str


class Load(BaseModel):
    """How busy the server is."""

    server_load: int = Field(description="Requests that wait or run.")


router = APIRouter(tags=["health"])
_UNHEALTHY: dict[int | str, dict[str, Any]] = {503: {"model": HealthStatus, "description": "No engine answers."}}


@router.get("/health", summary="Whether the engine answers", responses=_UNHEALTHY)
@router.get("/ping", summary="As /health", responses=_UNHEALTHY)
@router.post("/ping", summary="As /health", responses=_UNHEALTHY)
async def health(request: Request) -> HealthStatus:
    state = request.app.state
    found = await state.engine.health()
    status, message = found.status, found.message
    if state.draining:
        status, message = "stopping", "the server stops and accepts nothing more"
    answer = HealthStatus(status=status, message=message)
    if status != "ok":
        return JSONResponse(answer.model_dump(), 503, {"retry-after": str(RETRY_AFTER)})  # type: ignore[return-value]
    return answer


@router.get("/version", summary="The server's version", responses=documented())
async def version() -> Version:
    return Version(version=lightvllm.__version__)


@router.get("/load", summary="Requests in progress", responses=documented())
async def load(request: Request) -> Load:
    return Load(server_load=request.app.state.engine.num_unfinished)
