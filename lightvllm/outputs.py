"""What a request brings back: names as in vLLM. Imports neither torch nor numpy."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Logprob:
    """A token's log-probability at one position.

    Attributes:
        logprob: natural logarithm, under the model's own distribution.
        rank: 1 for the most likely token of the vocabulary; None when it was not counted.
        decoded_token: the token's text; None when the request asked for no detokenization.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` completions of a prompt.

    Attributes:
        index: which of the `n`.
        text: what was generated, without the stop string unless the request asked to keep it.
        token_ids: what was generated, as tokens.
        cumulative_logprob: sum of the generated tokens' log-probabilities; None unless logprobs were asked for.
        logprobs: for each generated token, token id -> `Logprob` of it and of the most likely ones; None as above.
        finish_reason: "stop", "length", "abort" or "error"; None while it goes on.
        stop_reason: the stop string or token id that ended it; None when that was an end-of-sequence token, or when
            something else did. With finish_reason "error", what went wrong.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """When things happened to a request: seconds of the monotonic clock (`time.monotonic`), None until they do.

    Only differences mean something. A request that was preempted keeps its first times.
    """

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None

    @property
    def time_in_queue(self) -> float | None:
        """Seconds from arrival to the first step that computed some of it."""
        return None if self.first_scheduled_time is None else self.first_scheduled_time - self.arrival_time

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from arrival to the first generated token."""
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its completions, so far or finished.

    Attributes:
        prompt: as text; None when the request came as token ids.
        prompt_logprobs: parallel to `prompt_token_ids`: token id -> `Logprob`; None for the first token, which nothing
            precedes. None unless asked for.
        outputs: the `n` completions, by index.
        finished: whether all of them are.
        num_cached_tokens: prompt tokens whose keys and values came from the prefix cache; None until first scheduled.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    metrics: RequestMetrics | None = None
    num_cached_tokens: int | None = None
