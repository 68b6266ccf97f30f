"""The body of POST /v1/completions."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from lightvllm.errors import ParameterError
from lightvllm.server import limits
from lightvllm.server.limits import INT64_MAX, TokenIds
from lightvllm.server.protocol.base import refused
from lightvllm.server.protocol.sampling import GenerationFields

DEFAULT_MAX_TOKENS = 16  # OpenAI's

TokenPrompt = Annotated[TokenIds, Field(min_length=1)]
Prompt = (
    str
    | TokenPrompt
    | Annotated[list[str], Field(min_length=1, max_length=limits.MAX_PROMPTS)]
    | Annotated[list[TokenPrompt], Field(min_length=1, max_length=limits.MAX_PROMPTS)]
)


class CompletionRequest(GenerationFields):
    """OpenAI's fields and vLLM's. Each is honoured, or refused with a 400 that names it."""

    prompt: Prompt = Field(description="Text or token ids to continue, or a list of either.")
    max_tokens: int = Field(
        DEFAULT_MAX_TOKENS, ge=0, le=INT64_MAX, description="Most tokens to generate; 0 only with `echo`."
    )
    logprobs: int | None = Field(
        None, ge=-1, le=INT64_MAX, description="Log-probabilities of each token and of so many likeliest; -1: of all."
    )
    echo: bool = Field(False, description="Begin the answer with the prompt, and its logprobs with the prompt's.")
    add_special_tokens: bool = Field(True, description="Add what the tokenizer puts around a text, such as a BOS.")

    suffix: None = refused("the models here write on, they do not fill in")
    prompt_embeds: None = refused("prompts are text or token ids")

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ParameterError("max_tokens", "max_tokens: 0 only with echo true, expected at least 1")
        if self.echo and None not in (self.logprobs, self.prompt_logprobs) and self.logprobs != self.prompt_logprobs:
            raise ParameterError(
                "prompt_logprobs",
                f"prompt_logprobs: {self.prompt_logprobs}, but echo reports the prompt's by logprobs, which is "
                f"{self.logprobs}",
            )
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, as a list of one or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    @property
    def num_completions(self) -> int:
        """Of all prompts together."""
        return self.n * len(self.prompts)

    @property
    def is_echo_only(self) -> bool:
        """Whether only the prompt is asked for: the engine makes one token, which is not part of the answer."""
        return self.max_tokens == 0

    def field_behind(self, parameter: str) -> str:
        """See `GenerationFields`."""
        if parameter == "prompt_logprobs" and self.prompt_logprobs is None:
            return "logprobs"
        return super().field_behind(parameter)

    def _own_arguments(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = {"max_tokens": max(self.max_tokens, 1), "logprobs": self.logprobs}
        if self.echo and self.logprobs is not None:
            arguments["prompt_logprobs"] = self.logprobs
        return arguments
