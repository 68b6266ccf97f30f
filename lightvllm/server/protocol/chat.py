"""The body of POST /v1/chat/completions."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from lightvllm.errors import ParameterError
from lightvllm.server import limits
from lightvllm.server.limits import INT64_MAX, Label
from lightvllm.server.protocol.base import RequestModel, refused
from lightvllm.server.protocol.messages import Messages, ToolChoice, Tools, check_tools, template_messages
from lightvllm.server.protocol.sampling import GenerationFields

# What a template gets by fields of their own.
_TEMPLATE_FIELDS = (
    "messages",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
)


class TemplateFields(RequestModel):
    """How messages become a prompt."""

    messages: Messages = Field(description="The conversation so far.")
    tools: Tools | None = Field(None, description="Functions the model may call.")
    add_generation_prompt: bool = Field(True, description="End the prompt where the assistant's turn begins.")
    continue_final_message: bool = Field(
        False, description="Leave the last message open, for the model to write on; no generation prompt then."
    )
    add_special_tokens: bool = Field(False, description="Add what the tokenizer puts around a text, such as a BOS.")
    chat_template: str | None = Field(
        None,
        max_length=limits.MAX_TEMPLATE_CHARACTERS,
        description="Name of one of the model's chat templates; Jinja source only if the server trusts requests' own.",
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, max_length=limits.MAX_TEMPLATE_VARIABLES, description="Variables for the chat template."
    )
    mm_processor_kwargs: None = refused("the models here read text")
    media_io_kwargs: None = refused("the models here read text")

    @model_validator(mode="after")
    def _check_template(self) -> "TemplateFields":
        if self.continue_final_message and "add_generation_prompt" not in self.model_fields_set:
            self.add_generation_prompt = False
        if self.continue_final_message and self.add_generation_prompt:
            raise ParameterError(
                "continue_final_message", "continue_final_message: true goes with add_generation_prompt false"
            )
        for name in _TEMPLATE_FIELDS:
            if name in (self.chat_template_kwargs or {}):
                raise ParameterError(
                    "chat_template_kwargs", f"chat_template_kwargs: {name!r} is a field of the request"
                )
        return self

    def template_messages(self) -> list[dict[str, Any]]:
        """The messages as a chat template reads them."""
        return template_messages(self.messages)

    def template_tools(self) -> list[dict[str, Any]] | None:
        """The tools as a chat template reads them."""
        return None if self.tools is None else [tool.model_dump(exclude_unset=True) for tool in self.tools]

    def template_variables(self) -> dict[str, Any]:
        """The variables a chat template gets besides messages, tools and documents."""
        return dict(self.chat_template_kwargs or {})


class ChatCompletionRequest(GenerationFields, TemplateFields):
    """OpenAI's fields and vLLM's. Each is honoured, or refused with a 400 that names it."""

    max_completion_tokens: int | None = Field(
        None, ge=1, le=INT64_MAX, description="Most tokens to generate; left out: as many as the context holds."
    )
    max_tokens: int | None = Field(None, ge=1, le=INT64_MAX, description="Older name of `max_completion_tokens`.")
    logprobs: bool = Field(False, description="Report the log-probability of each token of the output.")
    top_logprobs: int = Field(
        0, ge=-1, le=INT64_MAX, description="With `logprobs`: and of so many likeliest tokens; -1: of all."
    )
    tool_choice: ToolChoice | None = Field(
        None, description="`none`, `auto` (the default), `required`, or a function: these two are enforced."
    )
    parallel_tool_calls: bool = Field(True, description="false: at most one call.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="A variable of the chat template; `none` also sets enable_thinking to false, others to true."
    )
    include_reasoning: bool = Field(True, description="false: leave `reasoning` out of the answer.")
    echo: bool = Field(
        False, description="With `continue_final_message`: begin the answer with that message's content."
    )
    documents: list[dict[str, Any]] | None = Field(
        None, max_length=limits.MAX_DOCUMENTS, description="Documents for the chat template."
    )
    safety_identifier: Label | None = Field(None, description="Newer name of `user`; stands in the access log.")
    prompt_cache_key: Label | None = Field(
        None, description="Meant to bring requests to the cache that has their prefix: here all share one."
    )
    prompt_cache_retention: Literal["in_memory"] | None = Field(None, description="Only `in_memory`.")
    service_tier: Literal["auto", "default"] | None = Field(None, description="Only `auto` or `default`: there is one.")
    store: Literal[False] = Field(False, description="Only false: nothing is kept.")
    modalities: list[Literal["text"]] | None = Field(
        None, min_length=1, max_length=1, description="Only `text`: the models here write text."
    )
    verbosity: Literal["medium"] | None = Field(None, description="Only `medium`: as the model does by itself.")

    audio: None = refused("the models here write text")
    prediction: None = refused("the output is computed, not compared with a prediction")
    web_search_options: None = refused("nothing is searched")
    metadata: None = refused("nothing is stored that it could be attached to")
    moderation: None = refused("there is no moderation")
    prompt_cache_options: None = refused("every prefix is cached by itself, for as long as there is room")
    functions: None = refused("use tools")
    function_call: None = refused("use tool_choice")
    return_prompt_text: None = refused("use /tokenize and /detokenize")

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatCompletionRequest":
        given = (self.max_tokens, self.max_completion_tokens)
        if None not in given and given[0] != given[1]:
            raise ParameterError(
                "max_tokens", f"max_tokens: {given[0]}, but max_completion_tokens is {given[1]}; give one of them"
            )
        if self.top_logprobs != 0 and not self.logprobs:
            raise ParameterError("top_logprobs", "top_logprobs: only with logprobs true")
        if self.echo and not self.continue_final_message:
            raise ParameterError("echo", "echo: in a chat only with continue_final_message true")
        if "parallel_tool_calls" in self.model_fields_set and not self.tools:
            raise ParameterError("parallel_tool_calls", "parallel_tool_calls: only with tools")
        if self.safety_identifier is not None and self.user not in (None, self.safety_identifier):
            raise ParameterError("safety_identifier", "safety_identifier: another name of user, which differs")
        self.user = self.user or self.safety_identifier
        check_tools(self.tools, self.tool_choice)
        return self

    def template_variables(self) -> dict[str, Any]:
        """The variables a chat template gets besides messages, tools and documents."""
        if self.reasoning_effort is None:
            return super().template_variables()
        implied = {"reasoning_effort": self.reasoning_effort, "enable_thinking": self.reasoning_effort != "none"}
        return implied | super().template_variables()

    def field_behind(self, parameter: str) -> str:
        """See `GenerationFields`."""
        if parameter == "logprobs":
            return "top_logprobs"
        if parameter == "prompt":
            return "messages"
        if parameter == "max_tokens" and self.max_tokens is None and self.max_completion_tokens is not None:
            return "max_completion_tokens"
        return super().field_behind(parameter)

    def _own_arguments(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        given = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        return {
            "max_tokens": defaults.get("max_tokens") if given is None else given,
            "logprobs": self.top_logprobs if self.logprobs else None,
        }
