"""A request's output as it comes: what is new since the last look."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from lightvllm.outputs import Logprob


@dataclass(slots=True)
class CompletionDelta:
    """What a completion got since the last delta.

    Attributes:
        index: which of the request's `n`.
        text: new text, certain: no half characters, no part of a stop string.
        token_ids, logprobs: the new tokens; those whose text is still held back are among them. `logprobs` is parallel,
            None unless asked for.
        finish_reason, stop_reason: as in `lightvllm.outputs.CompletionOutput`; set in its last delta.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class RequestDelta:
    """What a request got since the last delta: only those completions that got anything.

    Attributes:
        num_cached_tokens: prompt tokens that the prefix cache had.
        prompt_logprobs: in the first delta, if asked for: as in `lightvllm.outputs.RequestOutput`.
        finished: all completions are; no delta follows.
        time_to_first_token: seconds from the request's arrival; None as long as there is none.
    """

    outputs: list[CompletionDelta]
    num_cached_tokens: int = 0
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    finished: bool = False
    time_to_first_token: float | None = None


class RequestFailed(RuntimeError):
    """A request ended before its time; raised from its stream.

    Attributes:
        kind: "deadline": it took longer than it may. "engine": a step failed because of it, or it was running in
            three engine crashes without a token between. "shutdown": the server stops. "structure": the form that it
            asks for turned out to cost too much to follow.
    """

    def __init__(self, kind: Literal["deadline", "engine", "shutdown", "structure"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


class DeltaSource(Protocol):
    """Where a stream's deltas come from: `lightvllm.engine.completions.RequestState`."""

    request_id: str
    num_unfinished: int

    def take_delta(self) -> RequestDelta: ...


class RequestStream:
    """The deltas of one request. A reader that is slow gets fewer and larger ones: nothing piles up but its output.

    Args:
        abort: called with the request's id.
    """

    def __init__(self, source: DeltaSource, abort: Callable[[str], None]) -> None:
        self.request_id = source.request_id
        self._source = source
        self._abort = abort
        self._has_news = asyncio.Event()
        self._failure: RequestFailed | None = None
        self._waits_for_end = False

    async def __aiter__(self) -> AsyncIterator[RequestDelta]:
        """Raises `RequestFailed` where the request fails. Leaving the loop early does not abort: call `abort`."""
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            delta = self._source.take_delta()
            if delta.outputs:
                yield delta
            if self._failure is not None:
                raise self._failure
            if delta.finished:
                return

    async def final(self) -> RequestDelta:
        """All of the output as one delta, once there is no more to come; raises as iterating does."""
        self._waits_for_end = True
        while self._failure is None and self._source.num_unfinished:
            await self._has_news.wait()
            self._has_news.clear()
        if self._failure is not None:
            raise self._failure
        return self._source.take_delta()

    def abort(self) -> None:
        """Give the request up and free its cache blocks. Nothing happens if it has finished."""
        self._abort(self.request_id)

    def wake(self) -> None:
        """There is something new."""
        if not self._waits_for_end or not self._source.num_unfinished:
            self._has_news.set()

    def fail(self, failure: RequestFailed) -> None:
        """Nothing will follow what is there, but this."""
        self._failure = failure
        self._has_news.set()
