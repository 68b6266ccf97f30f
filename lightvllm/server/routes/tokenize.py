"""/tokenize and /detokenize: the model's tokens of a text or a chat, and back."""

import asyncio

from fastapi import APIRouter
from starlette.requests import Request

from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.errors import ParameterError
from lightvllm.server.admission import read_request
from lightvllm.server.errors import documented
from lightvllm.server.generate.prompts import chat_prompt
from lightvllm.server.openapi import json_body
from lightvllm.server.protocol.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeChatRequest,
    TokenizePromptRequest,
    TokenizeResponse,
)

router = APIRouter(tags=["tokens"])
_ERRORS = documented(400, 404, 408, 413, 415)


@router.post(
    "/tokenize",
    summary="Token ids of a text or a chat",
    responses=_ERRORS,
    openapi_extra=json_body(TokenizePromptRequest, TokenizeChatRequest),
    response_model_exclude_none=True,
)
async def tokenize(request: Request) -> TokenizeResponse:
    engine: AsyncEngine = request.app.state.engine
    asked: TokenizePromptRequest | TokenizeChatRequest = await read_request(
        request, TokenizePromptRequest, TokenizeChatRequest
    )
    if isinstance(asked, TokenizePromptRequest):
        token_ids = await asyncio.to_thread(engine.tokenizer.encode, asked.prompt, asked.add_special_tokens)
    else:
        token_ids = (await chat_prompt(asked, engine)).token_ids
    names = None
    if asked.return_token_strs:
        names = [engine.tokenizer.backend.id_to_token(token_id) or "" for token_id in token_ids]
    return TokenizeResponse(
        count=len(token_ids),
        max_model_len=engine.max_model_len,
        tokens=token_ids,
        token_strs=names,
    )


@router.post("/detokenize", summary="Text of token ids", responses=_ERRORS, openapi_extra=json_body(DetokenizeRequest))
async def detokenize(request: Request) -> DetokenizeResponse:
    engine: AsyncEngine = request.app.state.engine
    asked = await read_request(request, DetokenizeRequest)
    vocab_size = engine.model_config.vocab_size
    unknown = next((token_id for token_id in asked.tokens if token_id >= vocab_size), None)
    if unknown is not None:
        raise ParameterError("tokens", f"tokens: {unknown} is not in the vocabulary, which ends at {vocab_size - 1}")
    # Special tokens stay in the text: it is what /tokenize was given.
    text = await asyncio.to_thread(engine.tokenizer.decode, asked.tokens, skip_special_tokens=False)
    return DetokenizeResponse(prompt=text)
