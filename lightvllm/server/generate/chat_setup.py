"""From a chat request to what the engine is to do, and how its output is to be read."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from lightvllm.config import ServerConfig
from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.errors import ParameterError
from lightvllm.sampling_params import SamplingParams, StructuredOutputsParams
from lightvllm.server.generate.chat_choice import ChoiceWriter
from lightvllm.server.generate.logprobs import TokenNames
from lightvllm.server.generate.prompts import ChatPrompt, chat_prompt
from lightvllm.server.parsing import (
    ReasoningFormat,
    ReasoningState,
    ToolChoice,
    ToolFormat,
    detect_formats,
    forced_grammar,
    is_forced,
    make_output_parser,
    needs_special_tokens,
    reasoning_state,
    strict_grammar,
    validate_tools,
)
from lightvllm.server.protocol.chat import ChatCompletionRequest


@dataclass(frozen=True)
class ChatSetup:
    """What there is to know before anything runs."""

    prompt: TokenizedPrompt
    params: SamplingParams
    writers: list[ChoiceWriter]


async def set_up_chat(request: ChatCompletionRequest, engine: AsyncEngine, config: ServerConfig) -> ChatSetup:
    """Render, tokenize, and choose sampling parameters, grammar and parsers.

    Raises:
        ParameterError: what the template, the tools or the sampling parameters refuse.
    """
    tool_format, reasoning_format = output_formats(engine, config)
    tools, tool_choice = request.template_tools(), _plain_choice(request)
    validate_tools(tools, tool_choice, tool_format)
    params = request.to_sampling_params(engine.default_sampling_params)
    is_constrained = params.structured_outputs is not None
    rendered = await chat_prompt(request, engine)
    reasoning = reasoning_state(reasoning_format, rendered.text, rendered.continued_message)
    if tools is not None and tool_choice != "none":
        # In a thread: each function's schema is compiled to be checked.
        params = await asyncio.to_thread(
            _params_with_tools, request, params, tools, tool_choice, tool_format, reasoning
        )
    names = TokenNames(engine.tokenizer, request.return_tokens_as_token_ids)
    role = "assistant" if request.add_generation_prompt else request.messages[-1].role
    echo = rendered.continued_message if request.echo else None
    writers = [
        ChoiceWriter(
            index,
            request,
            make_output_parser(
                tool_format=tool_format,
                reasoning=reasoning,
                tools=tools,
                tool_choice=tool_choice,
                parallel_tool_calls=request.parallel_tool_calls,
                is_constrained=is_constrained,
                skip_special_tokens=request.skip_special_tokens,
            ),
            names,
            role,
            echo or "",
        )
        for index in range(request.n)
    ]
    return ChatSetup(_truncated(request, rendered, params, engine), params, writers)


def output_formats(engine: AsyncEngine, config: ServerConfig) -> tuple[ToolFormat | None, ReasoningFormat | None]:
    """How the model marks tool calls and reasoning: as the server's settings say, else as its chat templates do."""
    templates = engine.tokenizer.chat_templates
    chosen = engine.chat_template
    source = "\n".join(templates.values()) if chosen is None else templates.get(chosen, chosen)
    tool_format, reasoning_format = detect_formats(source)
    if config.tool_call_parser != "auto":
        tool_format = None if config.tool_call_parser == "none" else config.tool_call_parser
    if config.reasoning_parser != "auto":
        reasoning_format = None if config.reasoning_parser == "none" else config.reasoning_parser
    return tool_format, reasoning_format


def _plain_choice(request: ChatCompletionRequest) -> ToolChoice:
    choice = request.tool_choice
    return choice if choice is None or isinstance(choice, str) else choice.model_dump()


def _params_with_tools(
    request: ChatCompletionRequest,
    params: SamplingParams,
    tools: list[dict[str, Any]],
    tool_choice: ToolChoice,
    tool_format: ToolFormat | None,
    reasoning: ReasoningState,
) -> SamplingParams:
    """The parameters that let the model call tools, or make it do so."""
    grammar: str | None = None
    if is_forced(tool_choice):
        if params.structured_outputs is not None:
            field = request.field_behind("structured_outputs")
            raise ParameterError(
                "tool_choice", f"tool_choice: the output cannot both be a call, as it says, and of the form in {field}"
            )
        grammar = forced_grammar(tools, tool_choice, request.parallel_tool_calls, tool_format, reasoning)
    elif params.structured_outputs is None:
        grammar = strict_grammar(tools, tool_format, reasoning)
    if grammar is not None:
        params = replace(params, structured_outputs=StructuredOutputsParams(grammar=grammar))
    if needs_special_tokens(tool_format):
        params = replace(params, skip_special_tokens=False)
    return params


def _truncated(
    request: ChatCompletionRequest, prompt: ChatPrompt, params: SamplingParams, engine: AsyncEngine
) -> TokenizedPrompt:
    kept = request.truncated(prompt.token_ids, engine.max_model_len, params.max_tokens)
    return TokenizedPrompt(kept, prompt.text if len(kept) == len(prompt.token_ids) else None, request.cache_salt)
