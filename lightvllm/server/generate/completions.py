"""/v1/completions: prompts, continued."""

from collections.abc import Sequence

from msgspec import UNSET, UnsetType
from starlette.requests import Request

from lightvllm.engine.detokenizer import text_stream
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.engine.streams import CompletionDelta, RequestDelta
from lightvllm.engine.tokenizer import Tokenizer
from lightvllm.sampling_params import SamplingParams
from lightvllm.server.generate.answer import Answer
from lightvllm.server.generate.chunks import Completion, CompletionChoice, CompletionLogprobs, Usage
from lightvllm.server.generate.logprobs import (
    Entries,
    TextOffsets,
    TokenNames,
    completion_logprobs,
    prompt_logprobs,
)
from lightvllm.server.protocol.completion import CompletionRequest


class CompletionAnswer(Answer):
    """The answer to one request, which may have several prompts with several choices each."""

    def __init__(
        self,
        http: Request,
        request: CompletionRequest,
        prompts: Sequence[TokenizedPrompt],
        params: SamplingParams,
    ) -> None:
        super().__init__(http, request, prompts, params, prefix="cmpl")
        self.request = request
        tokenizer = self.engine.tokenizer
        self.writers = [PromptWriter(i, prompt, request, tokenizer) for i, prompt in enumerate(prompts)]

    def _receive(self, prompt_index: int, delta: RequestDelta) -> None:
        if self.request.is_echo_only:
            _forget_output(delta)
        super()._receive(prompt_index, delta)

    def _whole(self, deltas: Sequence[RequestDelta]) -> Completion:
        choices = [choice for i, delta in enumerate(deltas) for choice in self.writers[i].write(delta)]
        return self._answer(choices, self.usage.usage())

    def _chunks(self, prompt_index: int, delta: RequestDelta) -> list[Completion]:
        usage: Usage | UnsetType | None = None if self.options.include_usage else UNSET
        if self.options.continuous_usage_stats:
            usage = self.usage.usage()
        choices = self.writers[prompt_index].write(delta)
        return [self._answer([choice], usage) for choice in choices if _says_something(choice)]

    def _usage_chunk(self) -> Completion:
        return self._answer([], self.usage.usage())

    def _answer(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Completion:
        return Completion(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)


class PromptWriter:
    """Writes the choices of one prompt.

    Args:
        index: of the prompt in the request.
    """

    def __init__(self, index: int, prompt: TokenizedPrompt, request: CompletionRequest, tokenizer: Tokenizer) -> None:
        self.prompt = prompt
        self.request = request
        self.tokenizer = tokenizer
        self.names = TokenNames(tokenizer, request.return_tokens_as_token_ids)
        self.text = ""
        if request.echo:
            self.text = tokenizer.decode(prompt.token_ids, False) if prompt.text is None else prompt.text
        self.first_index = index * request.n
        self.prompt_logprobs: Entries | None = None
        self.offsets: list[TextOffsets | None] = [None] * request.n  # of the choices that have begun

    def write(self, delta: RequestDelta) -> list[CompletionChoice]:
        """What is new of the choices."""
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        choices = []
        for output in delta.outputs:
            is_first = self.offsets[output.index] is None
            offsets = self.offsets[output.index] = self.offsets[output.index] or self._output_offsets()
            choice = CompletionChoice(
                index=self.first_index + output.index,
                text=output.text,
                logprobs=self._logprobs(output, offsets),
                finish_reason=output.finish_reason,
                stop_reason=output.stop_reason,
            )
            if self.request.return_token_ids:
                choice.token_ids = output.token_ids
            if is_first:
                self._put_prompt_before(choice)
            choices.append(choice)
        return choices

    def _logprobs(self, output: CompletionDelta, offsets: TextOffsets) -> CompletionLogprobs | None:
        # The end-of-sequence token is listed, though it is no part of the text: clients that score continuations take
        # the last entry for the generated token's and leave it out.
        if self.request.logprobs is None:
            return None
        return completion_logprobs(
            output.token_ids,
            output.logprobs or [],
            offsets.push(output.token_ids),
            self.request.logprobs,
            self.names,
        )

    def _put_prompt_before(self, choice: CompletionChoice) -> None:
        """Add to a choice's first piece what it says of the prompt."""
        choice.text = self.text + choice.text
        if self.request.return_token_ids:
            choice.prompt_token_ids = self.prompt.token_ids
        if self.prompt_logprobs is None:
            return
        if self.request.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(self.prompt_logprobs)
        if self.request.echo and self.request.logprobs is not None:
            assert choice.logprobs is not None
            token_ids = self.prompt.token_ids
            echoed = completion_logprobs(
                token_ids, self.prompt_logprobs, self._prompt_offsets(), self.request.logprobs, self.names
            )
            echoed.extend(choice.logprobs)
            choice.logprobs = echoed

    def _prompt_offsets(self) -> list[int]:
        """Where the prompt's tokens begin in its text, in which those that the tokenizer added do not stand."""
        tokenizer = self.tokenizer
        stream = text_stream(tokenizer, skip_special_tokens=False)
        offsets, end = [], 0
        for token_id in self.prompt.token_ids:
            offsets.append(end)
            if token_id not in tokenizer.special_ids or self.text.startswith(tokenizer.token_text(token_id), end):
                end += len(stream.push(token_id))
        return offsets

    def _output_offsets(self) -> TextOffsets:
        request = self.request
        stream = text_stream(
            self.tokenizer,
            request.skip_special_tokens,
            request.spaces_between_special_tokens,
            self.prompt.token_ids,
        )
        return TextOffsets(stream, start=len(self.text))


def _forget_output(delta: RequestDelta) -> None:
    """Leave the prompt alone: the engine has made one token, as it makes no less."""
    for output in delta.outputs:
        output.text, output.token_ids, output.logprobs = "", [], None
        output.finish_reason, output.stop_reason = "length", None


def _says_something(choice: CompletionChoice) -> bool:
    """Whether a chunk is worth sending: text may be held back while tokens come."""
    return bool(
        choice.text
        or choice.finish_reason is not None
        or choice.logprobs is not None
        or choice.token_ids is not UNSET
        or choice.prompt_token_ids is not UNSET
    )
