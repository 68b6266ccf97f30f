"""From an HTTP request to its checked body: what only the server's own state can tell is told here."""

from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from lightvllm.config import ServerConfig
from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.errors import ParameterError
from lightvllm.server.body import parse_body, read_body
from lightvllm.server.errors import RETRY_AFTER, ApiError
from lightvllm.server.limits import MAX_CHARACTERS_PER_TOKEN
from lightvllm.server.protocol.base import parse_object, show
from lightvllm.server.protocol.chat import TemplateFields
from lightvllm.server.protocol.completion import CompletionRequest
from lightvllm.server.protocol.messages import num_characters
from lightvllm.server.protocol.sampling import GenerationFields
from lightvllm.server.protocol.tokenization import TokenizePromptRequest

ModelT = TypeVar("ModelT", bound=BaseModel)


async def read_request(request: Request, *models: type[ModelT]) -> ModelT:
    """The body of a request, checked.

    Args:
        models: the form it has; where there are two, the first has a field `prompt` and the other has not.

    Raises:
        ApiError: 408, 413, 415, 400 for malformed JSON, 404 for an unknown model, 503 while the server stops.
        ParameterError: of a field that is wrong.
    """
    state = request.app.state
    if state.draining:
        headers = {"retry-after": str(RETRY_AFTER), "connection": "close"}
        raise ApiError(503, "the server stops and accepts nothing more", code="shutting_down", headers=headers)
    config: ServerConfig = state.config
    body = await read_body(request, config.max_request_bytes, config.client_timeout, state.bodies)
    parsed = await parse_body(body, partial(_parse, models))
    require_model(getattr(parsed, "model", None), state.model_names)
    _check_settings(parsed, state.engine, config)
    return parsed


def _parse(models: tuple[type[ModelT], ...], data: dict[str, Any]) -> ModelT:
    return parse_object(models[0] if len(models) == 1 or "prompt" in data else models[1], data)


def require_model(name: str | None, model_names: list[str]) -> None:
    """Refuse a model that is not served.

    Raises:
        ApiError: 404.
    """
    if name is not None and name not in model_names:
        message = f"model: {show(name)} is not served here, but {', '.join(model_names)}"
        raise ApiError(404, message, param="model", code="model_not_found")


def _check_settings(parsed: BaseModel, engine: AsyncEngine, config: ServerConfig) -> None:
    if isinstance(parsed, GenerationFields) and parsed.n > config.max_completions:
        raise ParameterError("n", f"n: {parsed.n} is more than this server's max_completions, {config.max_completions}")
    if isinstance(parsed, TemplateFields) and not config.trust_request_chat_template:
        names = engine.tokenizer.chat_templates
        if parsed.chat_template is not None and parsed.chat_template not in names:
            raise ParameterError(
                "chat_template",
                "chat_template: templates from requests are not run here (trust_request_chat_template is off); "
                f"the model's own are {sorted(names)}",
            )
    _check_size(parsed, engine.max_model_len)


def _check_size(parsed: BaseModel, max_model_len: int) -> None:
    """Refuse texts that could not fit, before time is spent on tokenizing them."""
    name, size = "prompt", 0
    if isinstance(parsed, TemplateFields):
        name, size = "messages", sum(map(num_characters, parsed.messages))
    elif isinstance(parsed, CompletionRequest):
        size = max(map(len, parsed.prompts))
    elif isinstance(parsed, TokenizePromptRequest):
        size = len(parsed.prompt)
    most = max_model_len * MAX_CHARACTERS_PER_TOKEN
    if size > most:
        raise ParameterError(
            name, f"{name}: {size} characters cannot fit into {max_model_len} tokens, expected at most {most}"
        )
