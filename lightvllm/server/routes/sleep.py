"""/sleep, /wake_up, /is_sleeping: have the engine give up its memory, and take it back. Only with enable_sleep_mode."""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.requests import Request

from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.errors import ParameterError
from lightvllm.server.errors import ApiError, documented


class SleepStatus(BaseModel):
    """How the engine is."""

    is_sleeping: bool = Field(description="Whether requests are refused until it is woken up.")


router = APIRouter(tags=["sleep"])


@router.post("/sleep", summary="Give up the engine's memory", responses=documented(400, 403, 409))
async def sleep(
    request: Request,
    level: Annotated[int, Query(description="1: weights go to the host's memory; 2: they are dropped")] = 1,
) -> SleepStatus:
    """Answers when the memory is free. Refused with 409 while requests wait or run."""
    engine = _engine(request, "level")
    await engine.sleep(level)
    return SleepStatus(is_sleeping=engine.is_sleeping)


@router.post("/wake_up", summary="Take the memory back", responses=documented(400, 403))
async def wake_up(
    request: Request,
    tags: Annotated[list[str] | None, Query(description="only these: weights, kv_cache; by default both")] = None,
) -> SleepStatus:
    """Answers when requests are taken again; after only some tags, when these are back."""
    engine = _engine(request, "tags")
    await engine.wake_up(tags)
    return SleepStatus(is_sleeping=engine.is_sleeping)


@router.get("/is_sleeping", summary="Whether the engine sleeps", responses=documented())
async def is_sleeping(request: Request) -> SleepStatus:
    """Whether requests are refused until somebody wakes it up."""
    return SleepStatus(is_sleeping=request.app.state.engine.is_sleeping)


def _engine(request: Request, *known: str) -> AsyncEngine:
    """The engine, for those who may change its state.

    A page elsewhere could send a request without a body from the browser of somebody who reaches this server.
    """
    for name in request.query_params.keys() - set(known):
        raise ParameterError(name, f"{name}: is not supported, expected no parameter but {', '.join(known)}")
    origin = request.headers.get("origin")
    allowed = request.app.state.config.allowed_origins or []
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host") and not {origin, "*"} & {*allowed}:
        raise ApiError(403, f"pages of {origin!r:.80} may not do this, only those of allowed_origins")
    return request.app.state.engine
