"""/v1/models: what is served."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request

from lightvllm.server.admission import require_model
from lightvllm.server.errors import documented


class ModelCard(BaseModel):
    """A model, or another of its names."""

    id: str = Field(description="What a request's `model` says.")
    object: Literal["model"] = "model"
    created: int = Field(description="When the server started, in seconds since 1970.")
    owned_by: Literal["lightvllm"] = "lightvllm"
    root: str = Field(description="The model's first name.")
    parent: None = None
    max_model_len: int = Field(description="Longest prompt and output together, in tokens.")


class ModelList(BaseModel):
    """The served model under each of its names."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List the models", responses=documented())
async def list_models(request: Request) -> ModelList:
    return ModelList(data=[_card(request, name) for name in request.app.state.model_names])


@router.get("/v1/models/{model_id:path}", summary="One model", responses=documented(404))
async def retrieve_model(request: Request, model_id: str) -> ModelCard:
    require_model(model_id, request.app.state.model_names)
    return _card(request, model_id)


def _card(request: Request, name: str) -> ModelCard:
    state = request.app.state
    return ModelCard(
        id=name, created=state.created, root=state.model_names[0], max_model_len=state.engine.max_model_len
    )
