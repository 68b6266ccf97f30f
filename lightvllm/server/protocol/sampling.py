"""The fields that both generating requests have, and the sampling parameters they mean."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from lightvllm.errors import ParameterError
from lightvllm.sampling_params import SamplingParams
from lightvllm.server import limits
from lightvllm.server.limits import INT64_MAX, INT64_MIN, Label, TokenIds
from lightvllm.server.protocol.base import RequestModel, refused
from lightvllm.server.protocol.structure import StructureFields

Stop = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_STOP_CHARACTERS)]
BadWord = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_BAD_WORD_CHARACTERS)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenIdText = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}$")]

# Fields with the name and meaning of a field of SamplingParams.
_SAME = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "prompt_logprobs",
)


class StreamOptions(RequestModel):
    """What a stream has besides the text."""

    include_usage: bool = Field(False, description="End with a chunk without choices that has the usage.")
    continuous_usage_stats: bool = Field(False, description="Put the usage so far into every chunk.")
    include_obfuscation: Literal[False] | None = Field(
        None, description="Only false: chunks are not padded to hide their size."
    )


class GenerationFields(StructureFields):
    """What a chat and a completion request have in common."""

    model: str | None = Field(None, max_length=1024, description="Name of the model; the served one where left out.")
    n: int = Field(1, ge=1, le=INT64_MAX, description="Completions to make of the prompt.")
    stream: bool = Field(False, description="Answer with server-sent events, as the tokens come.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    temperature: float | None = Field(None, ge=0, le=2, description="Divides the logits; 0 takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1, description="Keep the likeliest tokens up to this probability.")
    top_k: int | None = Field(None, ge=-1, le=INT64_MAX, description="Keep this many tokens; 0 or -1: all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Drop tokens below this fraction of the likeliest.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Subtracted for tokens in the output.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="Subtracted per occurrence in the output.")
    repetition_penalty: float | None = Field(
        None, ge=0.001, le=1000, description="Above 1 discourages tokens that were there."
    )
    seed: int | None = Field(None, ge=INT64_MIN, le=INT64_MAX, description="Same seed, same request: same tokens.")
    logit_bias: dict[TokenIdText, Bias] | None = Field(
        None, max_length=limits.MAX_LOGIT_BIAS, description="Token id, as a string, to a number added to its logit."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=limits.MAX_STOPS)] | None = Field(
        None, description="A string, or several, that end the output; they are no part of it."
    )
    stop_token_ids: TokenIds | None = Field(
        None, max_length=limits.MAX_STOP_TOKEN_IDS, description="Tokens that end the output, besides the model's own."
    )
    include_stop_str_in_output: bool = Field(False, description="Keep the stop string at the end of the output.")
    ignore_eos: bool = Field(False, description="Go on after an end-of-sequence token.")
    min_tokens: int = Field(0, ge=0, le=INT64_MAX, description="No end by a token before so many.")
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the text.")
    spaces_between_special_tokens: bool = Field(True, description="Put spaces between special tokens in the text.")
    allowed_token_ids: TokenIds | None = Field(
        None, min_length=1, max_length=limits.MAX_ALLOWED_TOKEN_IDS, description="Forbid every other token."
    )
    bad_words: list[BadWord] | None = Field(
        None, max_length=limits.MAX_BAD_WORDS, description="Strings that the output does not come to contain."
    )
    prompt_logprobs: int | None = Field(
        None, ge=-1, le=INT64_MAX, description="Log-probabilities for each token of the prompt; not with `stream`."
    )
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, le=INT64_MAX, description="Keep so many tokens of the prompt; -1: as many as the context holds."
    )
    truncation_side: Literal["left", "right"] = Field(
        "left", description="Where truncate_prompt_tokens cuts: left keeps the end of the prompt, right its beginning."
    )
    return_tokens_as_token_ids: bool = Field(False, description="Name tokens in logprobs as `token_id:123`.")
    return_token_ids: bool = Field(False, description="Add `prompt_token_ids` and `token_ids` to the answer.")
    priority: int = Field(
        0, ge=INT64_MIN, le=INT64_MAX, description="Lower goes first; needs the server's priority scheduling."
    )
    request_id: Label | None = Field(None, description="Becomes part of the answer's id, and stands in the logs.")
    cache_salt: Label | None = Field(None, description="Share cached prefixes only with requests of the same salt.")
    user: Label | None = Field(None, description="Stands in the access log.")
    timeout: float | None = Field(
        None, ge=0.001, le=limits.MAX_TIMEOUT, description="Seconds after which the request is given up with a 504."
    )

    best_of: int | None = Field(None, ge=1, description="Only the value of `n`: nothing is thrown away.")
    use_beam_search: Literal[False] = Field(False, description="Only false: there is no beam search.")
    length_penalty: float = Field(1.0, ge=1, le=1, description="Only 1: it belongs to beam search.")
    logits_processors: None = refused("code does not come with requests")
    logprob_token_ids: None = refused("log-probabilities are of the likeliest tokens")
    repetition_detection: None = refused("use repetition_penalty or bad_words")
    thinking_token_budget: None = refused("use max_tokens")
    stream_interval: None = refused("tokens are sent as they come")
    watermarking: None = refused("outputs carry no watermark")
    session_id: None = refused("requests know no sessions; prefixes are found in the cache by their tokens")
    kv_transfer_params: None = refused("the KV cache stays in this engine")
    ec_transfer_params: None = refused("there is no encoder")
    vllm_xargs: None = refused("there are no extensions that would read it")
    routed_experts_prompt_start: None = refused("expert routing is not reported")
    return_token_offsets: None = refused("offsets are in logprobs.text_offset of a completion")
    return_mm_kwargs: None = refused("this model takes text only")

    @model_validator(mode="after")
    def _check_together(self) -> "GenerationFields":
        if self.stream_options is not None and not self.stream:
            raise ParameterError("stream_options", "stream_options: only with stream true")
        if self.best_of is not None and self.best_of != self.n:
            raise ParameterError("best_of", f"best_of: {self.best_of}, but only n, which is {self.n}, is supported")
        if self.truncate_prompt_tokens == 0:
            raise ParameterError("truncate_prompt_tokens", "truncate_prompt_tokens: 0 leaves nothing of the prompt")
        if self.prompt_logprobs is not None and self.stream:
            raise ParameterError("prompt_logprobs", "prompt_logprobs: not with stream true")
        self._check_carried()
        return self

    @property
    def num_completions(self) -> int:
        """Of all prompts together."""
        return self.n

    def _check_carried(self) -> None:
        """Refuse lists that are short, but not for so many completions."""
        for name in ("allowed_token_ids", "logit_bias", "stop_token_ids", "bad_words"):
            value = getattr(self, name) or ()
            size = sum(map(len, value)) if name == "bad_words" else len(value)
            if size * self.num_completions > limits.MAX_CARRIED_ITEMS:
                raise ParameterError(
                    name,
                    f"{name}: {size} {'characters' if name == 'bad_words' else 'entries'} for each of "
                    f"{self.num_completions} completions are more than {limits.MAX_CARRIED_ITEMS} together",
                )

    # ---- sampling parameters

    def to_sampling_params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """What the engine is to do.

        Args:
            defaults: the model's own values (generation_config.json) for what the request does not say.

        Raises:
            ParameterError: with the name of this request's field.
        """
        given = {name: getattr(self, name) for name in _SAME if name in self.model_fields_set}
        if self.logit_bias is not None:
            given["logit_bias"] = {int(token_id): bias for token_id, bias in self.logit_bias.items()}
        structure = self.structure()
        with self.own_names():
            return SamplingParams(
                **{**defaults, **given, **self._own_arguments(defaults), "structured_outputs": structure}
            )

    def _own_arguments(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of SamplingParams that the two requests spell in different ways."""
        raise NotImplementedError

    def field_behind(self, parameter: str) -> str:
        """The field of this request that a field of SamplingParams came from."""
        if parameter == "structured_outputs":
            return self.structure_field or parameter
        return parameter

    @contextmanager
    def own_names(self) -> Iterator[None]:
        """Errors of the engine's parameters leave this block with the name of this request's field."""
        try:
            yield
        except ParameterError as error:
            name = self.field_behind(error.parameter)
            if name == error.parameter:
                raise
            raise ParameterError(name, str(error).replace(error.parameter, name, 1)) from error

    # ---- prompts

    def truncated(self, token_ids: list[int], max_model_len: int, max_tokens: int | None) -> list[int]:
        """A prompt's tokens, cut as `truncate_prompt_tokens` says; -1 leaves room for `max_tokens`, or for one."""
        if self.truncate_prompt_tokens is None:
            return token_ids
        most = self.truncate_prompt_tokens
        if most == -1:
            most = max(max_model_len - (max_tokens or 1), 1)
        if len(token_ids) <= most:
            return token_ids
        return token_ids[:most] if self.truncation_side == "right" else token_ids[len(token_ids) - most :]
