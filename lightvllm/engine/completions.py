"""From the core's tokens to what a user reads: text, log-probabilities, reasons, times."""

import time
from copy import copy

from lightvllm.engine.detokenizer import Detokenizer
from lightvllm.engine.messages import AddRequest
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.engine.request import CoreOutput
from lightvllm.engine.step import TokenLogprobs
from lightvllm.engine.streams import CompletionDelta, RequestDelta
from lightvllm.engine.tokenizer import Tokenizer
from lightvllm.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from lightvllm.sampling_params import SamplingParams
from lightvllm.seeds import child_seed


class Completion:
    """One of a request's `n` completions, as it grows."""

    def __init__(
        self, index: int, prompt: TokenizedPrompt, params: SamplingParams, tokenizer: Tokenizer | None
    ) -> None:
        self.index = index
        self.params = params
        self.tokenizer = tokenizer if params.detokenize else None
        self.detokenizer: Detokenizer | None = None
        if self.tokenizer is not None:
            self.detokenizer = Detokenizer(
                self.tokenizer,
                stop=params.stop or (),
                include_stop_str_in_output=params.include_stop_str_in_output,
                skip_special_tokens=params.skip_special_tokens,
                spaces_between_special_tokens=params.spaces_between_special_tokens,
                min_tokens=params.min_tokens,
                prompt_token_ids=prompt.token_ids,
            )
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, Logprob]] | None = None if params.logprobs is None else []
        self.cumulative_logprob = 0.0
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.last_token_time: float | None = None
        self._num_tokens_taken = 0
        self._end_taken = False

    def append(self, output: CoreOutput) -> bool:
        """Take in a step's tokens. True if a stop string ended the completion, of which the core knows nothing."""
        token_ids = output.new_token_ids
        self.finish_reason = output.finish_reason
        self.stop_reason = output.stop_reason if output.error is None else output.error
        stopped = False
        if self.detokenizer is not None:
            # The token that ends a completion by its id is no part of the text, unless asked for.
            hidden = output.finish_reason == "stop" and not self.params.include_stop_str_in_output
            before = self.detokenizer.num_tokens
            stop = self.detokenizer.append(token_ids[:-1] if hidden else token_ids)
            if self.finish_reason is not None:
                self.detokenizer.finish()
                stop = self.detokenizer.matched_stop  # what was held back may complete one, too
            if stop is not None:
                stopped = output.finish_reason is None
                self.finish_reason, self.stop_reason = "stop", stop
                token_ids = token_ids[: self.detokenizer.num_tokens - before]
        self.token_ids += token_ids
        if self.logprobs is not None:
            for entry in (output.logprobs or [])[: len(token_ids)]:
                self.cumulative_logprob += entry.logprobs[0]
                self.logprobs.append(named_logprobs(entry, self.tokenizer))
        return stopped

    def take_delta(self) -> CompletionDelta | None:
        """What is new since the last call; None if nothing is."""
        start, self._num_tokens_taken = self._num_tokens_taken, len(self.token_ids)
        is_end = self.finish_reason is not None and not self._end_taken
        if start == self._num_tokens_taken and not is_end:
            return None
        self._end_taken |= is_end
        return CompletionDelta(
            index=self.index,
            text="" if self.detokenizer is None else self.detokenizer.next_text(),
            token_ids=self.token_ids[start:],
            logprobs=None if self.logprobs is None else self.logprobs[start:],
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def output(self) -> CompletionOutput:
        """A snapshot."""
        return CompletionOutput(
            index=self.index,
            text="" if self.detokenizer is None else self.detokenizer.text,
            token_ids=list(self.token_ids),
            cumulative_logprob=None if self.logprobs is None else self.cumulative_logprob,
            logprobs=None if self.logprobs is None else list(self.logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )


class RequestState:
    """A user's request: its completions, what they share, and all that is needed to take it up again elsewhere.

    Args:
        prompt, params: checked; `params` belong to the request.
        seed: of its random draws; each completion has its own, drawn from this.
        stream: see `LLMEngine.add_request`.
    """

    def __init__(
        self,
        request_id: str,
        prompt: TokenizedPrompt,
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        *,
        seed: int,
        eos_token_ids: tuple[int, ...] = (),
        priority: int = 0,
        stream: bool = False,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.params = params
        self.tokenizer = tokenizer if params.detokenize else None
        self.seed = seed
        self.eos_token_ids = eos_token_ids
        self.priority = priority
        self.stream = stream
        self.completions = [Completion(i, prompt, params, tokenizer) for i in range(params.n)]
        self.num_unfinished = params.n
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = (
            None if params.prompt_logprobs is None else [None]
        )
        self.num_cached_tokens: int | None = None
        self.metrics = RequestMetrics(arrival_time=time.monotonic())
        self._prompt_logprobs_taken = False

    @property
    def core_ids(self) -> list[str]:
        """The core knows each completion as a request of its own, by these ids."""
        if self.params.n == 1:
            return [self.request_id]
        return [f"{self.request_id}/{index}" for index in range(self.params.n)]

    def core_requests(self, is_suspect: bool = False) -> list[AddRequest]:
        """The unfinished completions as the core is to run them: from the start, or from where they are by now."""
        sibling_params = copy(self.params)
        sibling_params.prompt_logprobs = None  # the first completion's serve all
        if self.prompt_logprobs is not None and not self.completions[0].token_ids:
            self.prompt_logprobs = [None]  # the core begins with them again
        return [
            AddRequest(
                request_id=core_id,
                prompt_token_ids=self.prompt.token_ids,
                sampling_params=sibling_params if completion.index else self.params,
                seed=child_seed(self.seed, completion.index),
                eos_token_ids=self.eos_token_ids,
                output_token_ids=completion.token_ids,
                priority=self.priority,
                arrival_time=self.metrics.arrival_time,
                cache_salt=self.prompt.cache_salt,
                is_suspect=is_suspect,
            )
            for core_id, completion in zip(self.core_ids, self.completions, strict=True)
            if completion.finish_reason is None
        ]

    def append(self, index: int, output: CoreOutput) -> bool:
        """Take in a step's output for one completion; see `Completion.append`."""
        if self.metrics.first_scheduled_time is None:
            self.metrics.first_scheduled_time = output.first_scheduled_time
        if index == 0:
            if self.num_cached_tokens is None and output.first_scheduled_time is not None:
                self.num_cached_tokens = output.num_cached_tokens
            if self.prompt_logprobs is not None and output.prompt_logprobs:
                self.prompt_logprobs += [named_logprobs(entry, self.tokenizer) for entry in output.prompt_logprobs]
        completion = self.completions[index]
        stopped = completion.append(output)
        if output.new_token_ids:
            now = time.monotonic()
            if self.metrics.first_token_time is None:
                self.metrics.first_token_time = now
            self.metrics.last_token_time = completion.last_token_time = now
        if completion.finish_reason is not None:
            self.num_unfinished -= 1
            if self.num_unfinished == 0:
                self.metrics.finished_time = time.monotonic()
        return stopped

    def abort(self) -> None:
        """End the completions that are not finished."""
        for completion in self.completions:
            if completion.finish_reason is None:
                completion.finish_reason = "abort"
        self.num_unfinished = 0

    def take_delta(self) -> RequestDelta:
        """What is new since the last call: nothing before all of the prompt's log-probabilities are there."""
        if self.prompt_logprobs is not None and len(self.prompt_logprobs) < len(self.prompt.token_ids):
            return RequestDelta([], finished=self.num_unfinished == 0)
        delta = RequestDelta(
            [delta for completion in self.completions if (delta := completion.take_delta()) is not None],
            num_cached_tokens=self.num_cached_tokens or 0,
            finished=self.num_unfinished == 0,
            time_to_first_token=self.metrics.time_to_first_token,
        )
        if not self._prompt_logprobs_taken and delta.outputs:
            delta.prompt_logprobs, self._prompt_logprobs_taken = self.prompt_logprobs, True
        return delta

    def output(self) -> RequestOutput:
        """A snapshot."""
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt.text,
            prompt_token_ids=self.prompt.token_ids,
            prompt_logprobs=None if self.prompt_logprobs is None else list(self.prompt_logprobs),
            outputs=[completion.output() for completion in self.completions],
            finished=self.num_unfinished == 0,
            metrics=copy(self.metrics),
            num_cached_tokens=self.num_cached_tokens,
        )


def named_logprobs(entry: TokenLogprobs, tokenizer: Tokenizer | None) -> dict[int, Logprob]:
    """Token id -> its log-probability, rank and text: the chosen token first, then the most likely ones in order."""

    def named(token_id: int, logprob: float, rank: int) -> Logprob:
        return Logprob(logprob, rank, None if tokenizer is None else tokenizer.token_text(token_id))

    likeliest = zip(entry.token_ids[1:], entry.logprobs[1:], strict=True)
    result = {entry.token_ids[0]: named(entry.token_ids[0], entry.logprobs[0], entry.chosen_rank)}
    for rank, (token_id, logprob) in enumerate(likeliest, start=1):
        result.setdefault(token_id, named(token_id, logprob, rank))
    return result
