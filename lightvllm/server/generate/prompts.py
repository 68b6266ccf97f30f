"""From a request to the token ids that the engine is to continue. How long a text may be was checked before."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.engine.prompts import TokenizedPrompt, tokenize_prompt
from lightvllm.errors import ParameterError
from lightvllm.sampling_params import SamplingParams
from lightvllm.server.protocol.chat import ChatCompletionRequest, TemplateFields
from lightvllm.server.protocol.completion import CompletionRequest
from lightvllm.server.protocol.messages import num_characters

# Characters of a text from which on it is tokenized in a thread: the event loop has others to serve meanwhile.
LONG_TEXT = 2000

T = TypeVar("T")


@dataclass(frozen=True)
class ChatPrompt:
    """A chat as the model reads it.

    Attributes:
        text: as the template rendered it.
        token_ids: all of it; nothing is truncated.
        continued_message: the final message's content, where the model is to write on in it.
    """

    text: str
    token_ids: list[int]
    continued_message: str | None


async def completion_prompts(
    request: CompletionRequest, params: SamplingParams, engine: AsyncEngine
) -> list[TokenizedPrompt]:
    """The prompts of a completion request, whose sampling parameters are `params`.

    Raises:
        ValueError: a prompt is empty, or has ids outside the vocabulary.
    """

    def tokenize(prompt: str | list[int]) -> TokenizedPrompt:
        whole = tokenize_prompt(prompt, engine.tokenizer, engine.model_config.vocab_size, request.add_special_tokens)
        kept = request.truncated(whole.token_ids, engine.max_model_len, params.max_tokens)
        text = whole.text if len(kept) == len(whole.token_ids) else None
        return TokenizedPrompt(kept, text, request.cache_salt)

    prompts = request.prompts
    return await _in_thread_if(
        sum(len(prompt) for prompt in prompts) > LONG_TEXT, lambda: [tokenize(prompt) for prompt in prompts]
    )


async def chat_prompt(request: TemplateFields, engine: AsyncEngine) -> ChatPrompt:
    """The prompt of a chat request, or of a request to tokenize one.

    Raises:
        ParameterError: the template refuses the messages.
    """

    def tokenize() -> ChatPrompt:
        text = _render(request, documents, engine)
        try:
            token_ids = engine.tokenizer.encode(text, request.add_special_tokens)
        except ValueError as error:  # half a surrogate pair, escaped within the arguments of a call
            raise ParameterError("messages", f"messages: {error}") from None
        if not token_ids:
            raise ParameterError("messages", "messages: the chat template makes an empty prompt of them")
        return ChatPrompt(text, token_ids, continued)

    documents = request.documents if isinstance(request, ChatCompletionRequest) else None
    continued = _text(request.messages[-1].content) if request.continue_final_message else None
    # What else than messages' texts a template reads, or one that came with the request, may be anything.
    is_long = sum(map(num_characters, request.messages)) > LONG_TEXT or bool(
        request.tools or request.chat_template or request.chat_template_kwargs or documents
    )
    return await _in_thread_if(is_long, tokenize)


def _render(request: TemplateFields, documents: list[dict[str, Any]] | None, engine: AsyncEngine) -> str:
    try:
        return engine.tokenizer.apply_chat_template(
            request.template_messages(),
            tools=request.template_tools(),
            documents=documents,
            chat_template=request.chat_template or engine.chat_template,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            **request.template_variables(),
        )
    except ValueError as error:
        if request.chat_template is None and str(error).startswith("chat_template:"):
            # The template is the model's, so what it refuses are the messages.
            raise ParameterError("messages", str(error)) from error
        raise


def _text(content: object) -> str:
    """The text of a message's content, which is a string, parts or nothing."""
    if isinstance(content, str):
        return content
    return "".join(
        part.text if part.type == "text" else part.refusal
        for part in content or []  # type: ignore[attr-defined]
    )


async def _in_thread_if(is_long: bool, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work) if is_long else work()
