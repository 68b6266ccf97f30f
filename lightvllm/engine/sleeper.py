"""The front's side of sleeping: what the core was asked, and how it is."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from lightvllm.engine.messages import Sleep, SleepState, WakeUp
from lightvllm.engine.sleep import check_level, check_tags
from lightvllm.errors import EngineAsleep, EngineBusy, EngineUnavailable

logger = logging.getLogger(__name__)


class Sleeper:
    """Has the core sleep and wake up, and remembers how it is: a core that dies asleep is put to sleep again.

    Args:
        send: gives the core a message; raises EngineUnavailable where there is none.
        num_unfinished: how many requests wait or run.
    """

    def __init__(self, send: Callable[[Sleep | WakeUp], None], num_unfinished: Callable[[], int]) -> None:
        self._send = send
        self._num_unfinished = num_unfinished
        # Who waits for each answer, in their order; None: nobody, it was put to sleep again.
        self._asked: deque[asyncio.Future[SleepState] | None] = deque()
        self._level: int | None = None  # None: awake
        self._lock = asyncio.Lock()

    @property
    def is_sleeping(self) -> bool:
        """Whether the core sleeps, or is about to."""
        return self._level is not None

    @property
    def is_changing(self) -> bool:
        """Whether the core owes an answer."""
        return bool(self._asked)

    def refuse_if_asleep(self) -> None:
        """Raise EngineAsleep if requests are not taken."""
        if self.is_sleeping:
            raise EngineAsleep("the engine sleeps: wake it up first (POST /wake_up)")

    async def sleep(self, level: int) -> None:
        """Have the core sleep. From now on requests are to be refused.

        Raises:
            ParameterError: there is no such level.
            EngineBusy: requests wait or run.
            EngineUnavailable: the core cannot, is not there, or died of it.
        """
        check_level(level)
        async with self._lock:
            if count := self._num_unfinished():
                raise EngineBusy(f"the engine cannot sleep while {count} requests wait or run: let them finish first")
            before, self._level = self._level, max(level, self._level or 0)
            try:
                await self._ask(Sleep(level))
            except EngineUnavailable:
                self._level = before
                raise

    async def wake_up(self, tags: Sequence[str] | None) -> None:
        """Have the core wake up.

        Raises:
            ParameterError: there is no such part.
            EngineUnavailable: the core cannot, is not there, or died of it.
        """
        parts = check_tags(tags)
        async with self._lock:
            if self.is_sleeping:
                await self._ask(WakeUp(sorted(parts)))

    async def _ask(self, message: Sleep | WakeUp) -> None:
        self._send(message)
        answer: asyncio.Future[SleepState] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        state = await answer
        if state.error is not None:
            raise EngineUnavailable(state.error)

    def take_state(self, state: SleepState) -> None:
        """What the core answers."""
        if not state.is_sleeping:
            self._level = None
        answer = self._asked.popleft()
        if answer is not None and not answer.done():
            answer.set_result(state)
        elif state.error is not None:
            logger.error("the engine cannot sleep or wake up: %s", state.error)

    def take_ready(self) -> None:
        """There is a new core, which is awake."""
        if self._level is not None:
            self._send(Sleep(self._level))
            self._asked.append(None)

    def give_up(self, reason: str) -> None:
        """No answer will come any more."""
        while self._asked:
            answer = self._asked.popleft()
            if answer is not None and not answer.done():
                answer.set_exception(EngineUnavailable(reason))
