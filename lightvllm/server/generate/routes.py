"""/v1/completions and /v1/chat/completions: from the request to an answer, whole or as a stream."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lightvllm.config import ServerConfig
from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.errors import ParameterError
from lightvllm.server.admission import read_request
from lightvllm.server.errors import documented
from lightvllm.server.generate.answer import Answer, describe_error
from lightvllm.server.generate.chat import ChatAnswer
from lightvllm.server.generate.chat_setup import set_up_chat
from lightvllm.server.generate.chunks import ChatChunk, ChatCompletion, Completion
from lightvllm.server.generate.completions import CompletionAnswer
from lightvllm.server.generate.prompts import completion_prompts
from lightvllm.server.generate.sse import EventStream, while_connected
from lightvllm.server.openapi import answer, json_body
from lightvllm.server.protocol.chat import ChatCompletionRequest
from lightvllm.server.protocol.completion import CompletionRequest

router = APIRouter(tags=["generation"])
_ERRORS = documented(400, 404, 408, 413, 415, 504)


@router.post(
    "/v1/completions",
    summary="Continue prompts",
    response_class=Response,
    responses={200: answer(Completion, Completion), **_ERRORS},
    openapi_extra=json_body(CompletionRequest),
)
async def create_completion(http: Request) -> Response:
    """OpenAI's endpoint, with vLLM's further fields."""
    engine: AsyncEngine = http.app.state.engine
    request = await read_request(http, CompletionRequest)
    _refuse_many_prompts(request, http.app.state.config)
    params = request.to_sampling_params(engine.default_sampling_params)
    prompts = await completion_prompts(request, params, engine)
    return await _respond(http, CompletionAnswer(http, request, prompts, params), request.stream)


def _refuse_many_prompts(request: CompletionRequest, config: ServerConfig) -> None:
    """More than the queue has room for would be answered with "try again later" for ever."""
    if len(request.prompts) > 1 and request.num_completions > config.max_queued_requests:
        raise ParameterError(
            "prompt",
            f"prompt: {len(request.prompts)} prompts, for {request.n} completions each, are more than this server's "
            f"max_queued_requests, {config.max_queued_requests}",
        )


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    response_class=Response,
    responses={200: answer(ChatCompletion, ChatChunk), **_ERRORS},
    openapi_extra=json_body(ChatCompletionRequest),
)
async def create_chat_completion(http: Request) -> Response:
    """OpenAI's endpoint, with vLLM's further fields."""
    request = await read_request(http, ChatCompletionRequest)
    setup = await set_up_chat(request, http.app.state.engine, http.app.state.config)
    made = ChatAnswer(http, request, setup.prompt, setup.params, setup.writers)
    return await _respond(http, made, request.stream)


async def _respond(http: Request, made: Answer, stream: bool) -> Response:
    """The answer in one piece, or as a stream. If the client goes away its requests are aborted at once.

    Raises:
        ClientDisconnect: it did.
    """
    if stream:
        return EventStream(made.events(), describe_error, http.app.state.config.client_timeout)
    return Response(await while_connected(http.receive, made.whole()), media_type="application/json")
