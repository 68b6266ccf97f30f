"""The engine for a server: the core in a process of its own, requests as streams, and crashes that nobody notices.

Everything a request needs to go on is here, in its `RequestState`; the core is a cache that can be thrown away. When
its process dies or hangs, a new one is started and gets every unfinished request with the tokens it has. Draws are a
function of seed and position, so the tokens that follow are the ones that would have followed.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from lightvllm.config import EngineConfig
from lightvllm.engine.completions import RequestState
from lightvllm.engine.frontend import Frontend
from lightvllm.engine.messages import (
    AbortRequests,
    EngineReady,
    ResetPrefixCache,
    Sleep,
    SleepState,
    StepReport,
    ToFront,
    TraceUpdate,
    WakeUp,
    refuse_what_cannot_travel,
)
from lightvllm.engine.observer import EngineObserver, Observers, RequestRecord
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.engine.request import CoreOutput
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.sleeper import Sleeper
from lightvllm.engine.stats import EngineStats
from lightvllm.engine.streams import CompletionDelta, RequestDelta, RequestFailed, RequestStream
from lightvllm.engine.supervisor import Health, Supervisor
from lightvllm.engine.tokenizer import Tokenizer
from lightvllm.engine.trace import StepTrace
from lightvllm.engine.watchers import Watchers
from lightvllm.errors import EngineOverloaded, EngineUnavailable, ParameterError
from lightvllm.model_config import ModelConfig
from lightvllm.sampling_params import SamplingParams

__all__ = ["AsyncEngine", "CompletionDelta", "Health", "RequestDelta", "RequestFailed", "RequestStream"]

logger = logging.getLogger(__name__)

# A request that the core died of so many times, without a token for it in between, is given up: it may be the cause.
MAX_CRASHES = 3
# From so many on it runs alone, so that it is given up for what itself does, and no other is.
SUSPECT_CRASHES = 2


class _Entry:
    """A request that is not finished."""

    def __init__(self, state: RequestState, abort: Callable[["_Entry"], None]) -> None:
        self.state = state
        self.stream = RequestStream(state, lambda _: abort(self))
        self.place = 0  # the first of its messages among those that the core got
        self.num_crashes = 0  # in all
        self.crashes_in_a_row = 0  # while it ran, without a token in between
        self.deadline: asyncio.TimerHandle | None = None


class AsyncEngine:
    """See the module.

    Args:
        observer: told of steps, tokens, ends and crashes.
        max_queued_requests, max_queued_tokens: requests, each of their `n` completions counted, and their prompt
            tokens, that may wait or run at a time. One that is alone is taken, whatever its size.
        engine_timeout: seconds without a step, while there are requests, after which the core counts as hung.

    Attributes:
        tokenizer, model_config, chat_template, default_sampling_params: as in `lightvllm.llm.LLM`. There is always a
            tokenizer.
        num_unfinished_tokens: prompt tokens of the requests that wait or run.

    Raises:
        ValueError: a setting or a checkpoint that does not work.
    """

    def __init__(
        self,
        config: EngineConfig,
        observer: EngineObserver | None = None,
        *,
        max_queued_requests: int = 1024,
        max_queued_tokens: int = 1 << 20,
        engine_timeout: float = 120.0,
    ) -> None:
        self.config = config
        self.frontend = frontend = Frontend(config)
        if frontend.tokenizer is None:
            raise ValueError("skip_tokenizer_init: a server needs the tokenizer")
        self.tokenizer: Tokenizer = frontend.tokenizer
        self.model_config: ModelConfig = frontend.model_config
        self.chat_template = frontend.chat_template
        self.default_sampling_params: dict[str, Any] = frontend.default_sampling_params
        self.max_queued_requests = max_queued_requests
        self.max_queued_tokens = max_queued_tokens
        self.num_unfinished_tokens = 0
        self._observer = Observers(*([] if observer is None else [observer]))
        self._entries: dict[str, _Entry] = {}
        self._unsubmitted: dict[str, _Entry] = {}  # those of them that the core does not have
        self._owner_of: dict[str, tuple[_Entry, int]] = {}  # by the core's ids
        self._num_sent = 0  # requests that the core was given
        self._pace = _Pace()
        self._stats: EngineStats | None = None
        self._is_stopping = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._supervisor = Supervisor(self, config, frontend.path, engine_timeout)
        self._watchers = Watchers(self._supervisor.send)
        self._sleeper = Sleeper(self._send_if_running, lambda: len(self._entries))

    # ---- life

    async def start(self) -> None:
        """Start the engine process and wait until its model is loaded.

        Raises:
            ValueError: a setting or a checkpoint that does not work.
        """
        await self._supervisor.start()

    async def stop(self, timeout: float) -> None:
        """Accept nothing more, let what runs finish for so many seconds, fail the rest, end the process."""
        self._is_stopping = True
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_idle.wait(), timeout)
            for entry in list(self._entries.values()):
                self._fail(entry, RequestFailed("shutdown", f"the server stops, and {timeout:g} s were not enough"))
            self._sleeper.give_up("the server stops: nothing more is accepted")
            self._watchers.close()
        finally:
            await self._supervisor.stop()

    def kill(self) -> None:
        """End the engine process at once; for one who is about to end at once, too."""
        self._supervisor.kill()

    async def health(self) -> Health:
        """Ask the engine whether it lives."""
        if self._is_stopping:
            return Health("stopping", "the server stops: nothing more is accepted")
        health = await self._supervisor.health()
        if health.is_healthy and self.is_sleeping:
            return Health("ok", "the engine sleeps: requests are refused until it is woken up")
        return health

    @property
    def limits(self) -> SchedulerConfig:
        """Of the core; known once started."""
        assert self._supervisor.ready is not None, "the engine has not started"
        return self._supervisor.ready.scheduler

    @property
    def max_model_len(self) -> int:
        """The most tokens, prompt and output, of one request. Known once started."""
        return self.limits.max_model_len

    @property
    def pid(self) -> int | None:
        """Of the engine process; None while there is none."""
        return self._supervisor.pid

    # ---- requests

    @property
    def num_unfinished(self) -> int:
        """Requests that wait or run."""
        return len(self._entries)

    async def add_request(
        self,
        request_id: str,
        prompt: TokenizedPrompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> RequestStream:
        """Accept a request. When this returns it is valid, and will be answered.

        Args:
            params: checked here against the model; `params.stop` and the like are resolved.
            timeout: seconds from now after which it is given up with `RequestFailed("deadline")`.

        Raises:
            ParameterError: (a ValueError) what cannot work, prompt + max_tokens beyond the context included.
            EngineOverloaded: the queue is full.
            EngineUnavailable: no engine answers, and none will soon.
        """
        self._refuse_what_cannot_run(prompt, params)
        if params.structured_outputs is not None:  # compiled to be checked, which may take a while
            state = await asyncio.to_thread(
                self.frontend.open_request, request_id, prompt, params, priority=priority, stream=True
            )
        else:
            state = self.frontend.open_request(request_id, prompt, params, priority=priority, stream=True)
        refuse_what_cannot_travel(state.core_requests()[0])
        self._refuse_what_is_too_much(state)
        entry = _Entry(state, self._abort)
        self._entries[request_id] = self._unsubmitted[request_id] = entry
        self._owner_of |= {core_id: (entry, index) for index, core_id in enumerate(state.core_ids)}
        self.num_unfinished_tokens += len(prompt.token_ids)
        self._is_idle.clear()
        if timeout is not None:
            late = RequestFailed("deadline", f"timeout: the request was not finished within {timeout:g} s")
            entry.deadline = asyncio.get_running_loop().call_later(timeout, self._fail, entry, late)
        self._observer.on_add(request_id)
        self._submit()
        return entry.stream

    def abort(self, request_id: str) -> None:
        """End a request and free its blocks. Ids of finished or unknown requests mean nothing."""
        entry = self._entries.get(request_id)
        if entry is not None:
            self._abort(entry)

    async def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes."""
        self._supervisor.send(ResetPrefixCache())

    @property
    def is_sleeping(self) -> bool:
        """Whether requests are refused until `wake_up`."""
        return self._sleeper.is_sleeping

    async def sleep(self, level: int = 1) -> None:
        """See `lightvllm.engine.core.EngineCore.sleep`. `add_request` raises EngineAsleep from now on.

        Raises:
            ParameterError: there is no such level.
            EngineBusy: requests wait or run.
            EngineUnavailable: the engine cannot, or is not there.
        """
        await self._sleeper.sleep(level)

    async def wake_up(self, tags: Sequence[str] | None = None) -> None:
        """See `lightvllm.engine.core.EngineCore.wake_up`.

        Raises:
            ParameterError: there is no such part.
            EngineUnavailable: the engine cannot, for want of memory, or is not there.
        """
        await self._sleeper.wake_up(tags)

    def _send_if_running(self, message: Sleep | WakeUp) -> None:
        if self._is_stopping or not self._supervisor.is_running:
            raise EngineUnavailable("the engine is being started or stopped: it can neither sleep nor wake up now")
        self._supervisor.send(message)

    def _refuse_what_cannot_run(self, prompt: TokenizedPrompt, params: SamplingParams) -> None:
        limits, num_prompt_tokens = self.limits, len(prompt.token_ids)
        limits.max_num_tokens("the request", num_prompt_tokens, params.max_tokens)
        if params.max_tokens is not None and num_prompt_tokens + params.max_tokens > limits.max_model_len:
            raise ParameterError(
                "max_tokens",
                f"max_tokens is {params.max_tokens} and the prompt has {num_prompt_tokens} tokens, together more than "
                f"the context of {limits.max_model_len} tokens: ask for at most "
                f"{limits.max_model_len - num_prompt_tokens}, or shorten the prompt",
            )

    def _refuse_what_is_too_much(self, state: RequestState) -> None:
        if self._is_stopping:
            raise EngineUnavailable("the server stops: nothing more is accepted")
        self._supervisor.refuse_if_hopeless()
        self._sleeper.refuse_if_asleep()
        if any(core_id in self._owner_of for core_id in state.core_ids) or state.request_id in self._entries:
            raise ParameterError("request_id", f"request_id: {state.request_id!r} is in use")
        num_tokens = self.num_unfinished_tokens + len(state.prompt.token_ids)
        what = None
        if len(self._owner_of) + state.params.n > self.max_queued_requests and self._entries:
            what = f"requests for {len(self._owner_of)} completions wait or run"
        elif num_tokens > self.max_queued_tokens and self._entries:
            what = f"requests with {self.num_unfinished_tokens} prompt tokens wait or run"
        if what is not None:
            raise EngineOverloaded(f"the queue is full: {what}; try again later", self._pace.seconds_to_next)

    # ---- what the supervisor calls

    def take_message(self, message: ToFront) -> None:
        """What the core says, once it runs."""
        if isinstance(message, StepReport):
            self._stats = message.stats
            for output in message.outputs:
                try:
                    self._take(output, message.num_added)
                except Exception:  # a bug of ours ends one request, not all
                    logger.exception("cannot take in the output of request %r", output.request_id)
                    if output.request_id in self._owner_of:
                        self._fail(self._owner_of[output.request_id][0], RequestFailed("engine", "an internal error"))
            self._observer.on_step(message)
        if isinstance(message, SleepState):
            self._sleeper.take_state(message)
        trace = message.trace if isinstance(message, StepReport | TraceUpdate) else None
        if trace is not None:
            self._watchers.show(trace)

    def take_ready(self, ready: EngineReady) -> None:
        """There is a new core: give it what the one before had."""
        self._num_sent = 0
        self._observer.on_ready(ready)
        self._watchers.take_ready()
        self._sleeper.take_ready()
        self._submit()

    def take_crash(self, running: set[str]) -> None:
        """The core is gone, and what it computed with it.

        Args:
            running: the core's ids of what it ran: only these can be the cause.
        """
        for entry in list(self._entries.values()):
            if entry.state.request_id in self._unsubmitted:
                continue
            self._unsubmitted[entry.state.request_id] = entry
            entry.num_crashes += 1
            entry.crashes_in_a_row += not running.isdisjoint(entry.state.core_ids)
            if entry.crashes_in_a_row >= MAX_CRASHES:
                message = f"the engine died {MAX_CRASHES} times while this request ran, without a token in between"
                self._fail(entry, RequestFailed("engine", message))
        self._sleeper.give_up("the engine died before it could do so, and is started again")
        # In the order of arrival, as ever.
        self._unsubmitted = {name: entry for name, entry in self._entries.items() if name in self._unsubmitted}
        self._observer.on_crash(len(self._entries))

    def fail_all(self, message: str) -> None:
        """The engine cannot be started again."""
        for entry in list(self._entries.values()):
            self._fail(entry, RequestFailed("engine", message))

    @property
    def has_submitted(self) -> bool:
        """Whether the core owes anything."""
        return len(self._entries) > len(self._unsubmitted) or self._sleeper.is_changing

    # ---- inside

    def _submit(self) -> None:
        """Give the core what it does not have."""
        if not self._unsubmitted or not self._supervisor.is_running:
            return
        for name, entry in list(self._unsubmitted.items()):
            entry.place = self._num_sent + 1
            for message in entry.state.core_requests(entry.crashes_in_a_row >= SUSPECT_CRASHES):
                self._supervisor.send(message)
                self._num_sent += 1
            del self._unsubmitted[name]

    def _take(self, output: CoreOutput, num_added: int) -> None:
        entry, index = self._owner_of.get(output.request_id, (None, 0))
        # The core was a step ahead of an abort, also of one whose id is in use again, or of a stop string.
        if entry is None or num_added < entry.place or entry.state.completions[index].finish_reason is not None:
            return
        state, metrics = entry.state, entry.state.metrics
        if output.error is not None:
            is_about_structure = output.error.startswith("structured_outputs:")
            self._fail(entry, RequestFailed("structure" if is_about_structure else "engine", output.error))
            return
        first, last = metrics.first_token_time, state.completions[index].last_token_time
        if state.append(index, output):
            self._supervisor.send(AbortRequests([output.request_id]))
        if output.new_token_ids:
            entry.crashes_in_a_row = 0
            now = metrics.last_token_time or 0.0
            if first is None:
                self._observer.on_first_token(now - metrics.arrival_time)
            if last is not None:
                self._observer.on_inter_token(now - last)
        if state.num_unfinished == 0:
            self._end(entry, None)
        entry.stream.wake()

    def _abort(self, entry: _Entry) -> None:
        if self._entries.get(entry.state.request_id) is entry:
            entry.state.abort()
            self._end(entry, "abort")
            entry.stream.wake()

    def _fail(self, entry: _Entry, failure: RequestFailed) -> None:
        if self._entries.get(entry.state.request_id) is entry:
            entry.state.num_unfinished = 0
            self._end(entry, "error")
            entry.stream.fail(failure)

    def _end(self, entry: _Entry, reason: str | None) -> None:
        """Forget a request; `reason` is why it ends before its time."""
        state = entry.state
        is_submitted = self._unsubmitted.pop(state.request_id, None) is None
        if reason is not None and is_submitted:
            self._supervisor.send(AbortRequests(state.core_ids))
        for core_id in state.core_ids:
            self._owner_of.pop(core_id, None)
        del self._entries[state.request_id]
        self.num_unfinished_tokens -= len(state.prompt.token_ids)
        if entry.deadline is not None:
            entry.deadline.cancel()
        self._pace.note_end()
        self._observer.on_finish(_record(entry, reason))
        if not self._entries:
            self._is_idle.set()

    # ---- watching

    def stats(self) -> EngineStats | None:
        """The figures of the last step; None before the first."""
        return self._stats

    def watch(self) -> AsyncGenerator[StepTrace, None]:
        """The engine's steps as they happen, until it stops or the generator is closed. The first is a snapshot.

        Who falls far behind loses traces and gets a snapshot in their place.
        """
        return self._watchers.watch()


class _Pace:
    """How soon a place in the queue becomes free, from when the last requests ended."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=32)

    def note_end(self) -> None:
        self._ends.append(time.monotonic())

    @property
    def seconds_to_next(self) -> float:
        """Between 1 and 60; a guess where there is nothing to go by."""
        if len(self._ends) < 2:
            return 5.0
        return min(60.0, max(1.0, (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)))


def _record(entry: _Entry, reason: str | None) -> RequestRecord:
    state, metrics = entry.state, entry.state.metrics
    return RequestRecord(
        request_id=state.request_id,
        params=state.params,
        num_prompt_tokens=len(state.prompt.token_ids),
        num_cached_tokens=state.num_cached_tokens or 0,
        num_output_tokens=[len(completion.token_ids) for completion in state.completions],
        finish_reasons=[completion.finish_reason or reason or "" for completion in state.completions],
        arrival_time=metrics.arrival_time,
        first_scheduled_time=metrics.first_scheduled_time,
        first_token_time=metrics.first_token_time,
        last_token_time=metrics.last_token_time,
        finished_time=time.monotonic(),
        num_crashes=entry.num_crashes,
    )
