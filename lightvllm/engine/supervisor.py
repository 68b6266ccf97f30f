"""Keeps an engine core process running: starts it, starts it again when it died or hung, and says how it is."""

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from lightvllm.config import EngineConfig
from lightvllm.engine.messages import (
    AddRequest,
    EngineFailed,
    EngineReady,
    Ping,
    Pong,
    Sleep,
    StepReport,
    ToCore,
    ToFront,
    WakeUp,
)
from lightvllm.engine.process import CoreDied, CoreProcess
from lightvllm.errors import EngineUnavailable

# Seconds before the process is started after a second, third, ... death without a step in between.
FIRST_DELAY, MAX_DELAY = 0.5, 30.0
# After so many starts in a row in which the core did not become ready, requests are refused until it does.
HOPELESS_STARTS = 3
# How long a model may take to load for the first time; and, as a multiple of what it took then, again.
START_TIMEOUT, RESTART_FACTOR = 1800.0, 10.0
# How long an idle engine has to answer a ping, and how long the process has to end by itself.
PING_TIMEOUT, EXIT_TIMEOUT = 2.0, 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Health:
    """Whether the engine answers, and if not, what is being done about it."""

    status: Literal["starting", "ok", "restarting", "hung", "stopping", "failed"]
    message: str = ""

    @property
    def is_healthy(self) -> bool:
        """Whether requests are answered now."""
        return self.status == "ok"


class Front(Protocol):
    """Whose core it is: `lightvllm.engine.async_engine.AsyncEngine`."""

    def take_message(self, message: ToFront) -> None: ...
    def take_crash(self, running: set[str]) -> None: ...
    def take_ready(self, ready: EngineReady) -> None: ...
    def fail_all(self, message: str) -> None: ...
    @property
    def has_submitted(self) -> bool: ...


class Supervisor:
    """See the module.

    Args:
        front: is told what the core says, when it died, and when there is a new one.
        path: the checkpoint's folder.
        engine_timeout: seconds without a message, while the core owes something, after which it counts as hung.

    Attributes:
        ready: what the core said of itself when it was ready; None before.
        num_crashes: how often the core died.
    """

    def __init__(self, front: Front, config: EngineConfig, path: Path, engine_timeout: float) -> None:
        self._front = front
        self._config = config
        self._path = path
        self._timeout = engine_timeout
        self.ready: EngineReady | None = None
        self._first_start: float | None = None  # seconds that it took
        self.num_crashes = 0
        self._process: CoreProcess | None = None
        self.is_running = False
        self._num_deaths = 0  # without a step in between
        self._starts_in_vain = 0  # in a row, so that the core did not become ready
        self._last_sign = 0.0  # of life, by `time.monotonic()`
        self._is_hung = False
        self._last_death = ""
        self._pong = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the core and wait until it is ready.

        Raises:
            ValueError: it cannot be started.
        """
        try:
            process = await self._launch()
        except (CoreDied, OSError) as error:
            raise ValueError(f"the engine: {error}") from None
        self._tasks = [asyncio.create_task(self._run(process)), asyncio.create_task(self._watch_for_hangs())]

    async def stop(self) -> None:
        """End the core for good."""
        self.is_running = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process is not None:
            await self._process.close(EXIT_TIMEOUT)
            self._process = None

    def kill(self) -> None:
        """End the core's process at once; for one who is about to end at once, too."""
        if self._process is not None:
            self._process.kill()

    @property
    def pid(self) -> int | None:
        """Of the core's process; None while there is none."""
        return None if self._process is None else self._process.pid

    def send(self, message: ToCore) -> None:
        """Send a message; while no core runs nobody needs it."""
        if self.is_running:
            assert self._process is not None
            if isinstance(message, AddRequest | Sleep | WakeUp) and not self._front.has_submitted:
                self._last_sign = time.monotonic()  # it was idle until now: nothing could be heard of it
            self._process.send(message)

    async def health(self) -> Health:
        """How the core is. An idle one is asked."""
        if self._starts_in_vain >= HOPELESS_STARTS:
            return Health("failed", f"the engine could not be started {self._starts_in_vain} times: {self._last_death}")
        if not self.is_running:
            return Health("restarting" if self.num_crashes else "starting", self._last_death)
        silence = time.monotonic() - self._last_sign
        if silence < PING_TIMEOUT:
            return Health("ok")
        if self._front.has_submitted:  # it answers between steps, and a step may take long
            return Health("ok") if silence < self._timeout else Health("hung", f"no step for {silence:.0f} s")
        self._pong.clear()
        self.send(Ping())
        try:
            await asyncio.wait_for(self._pong.wait(), PING_TIMEOUT)
        except TimeoutError:
            return Health("hung", f"no answer for {PING_TIMEOUT:g} s")
        return Health("ok")

    def refuse_if_hopeless(self) -> None:
        """Raise EngineUnavailable if the core could not be started for several times."""
        if self._starts_in_vain >= HOPELESS_STARTS:
            raise EngineUnavailable(f"the engine cannot be started: {self._last_death}")

    async def _launch(self) -> CoreProcess:
        """Start a process and wait until its core is ready.

        Raises:
            CoreDied: it is not, and will not be.
            ValueError: it cannot be started with these settings, or this checkpoint.
        """
        process = self._process = CoreProcess(self._config, self._path)
        try:
            message = await self._first_message(process)
        except BaseException:
            self._process = None
            await process.close()
            raise
        self.ready = message
        self._starts_in_vain = 0
        self._is_hung = False
        self._last_sign = time.monotonic()
        self.is_running = True
        logger.info("engine process %d: %s on %s", process.pid, message.dtype, message.device)
        self._front.take_ready(message)
        return process

    async def _first_message(self, process: CoreProcess) -> EngineReady:
        timeout, start = START_TIMEOUT, time.monotonic()
        if self._first_start is not None:
            timeout = min(timeout, max(RESTART_FACTOR * self._first_start, self._timeout))
        await process.start()
        try:
            message = await asyncio.wait_for(process.receive(), timeout)
        except TimeoutError:
            raise CoreDied(f"process {process.pid} was not ready within {timeout:.0f} s") from None
        if isinstance(message, EngineFailed):
            raise ValueError(message.error)
        assert isinstance(message, EngineReady), f"the core began with {message}"
        self._first_start = self._first_start or time.monotonic() - start
        return message

    async def _run(self, process: CoreProcess) -> None:
        """Take the core's messages in, and start another whenever it dies."""
        while True:
            try:
                await self._take_messages(process)
            except CoreDied as death:
                self.is_running = False
                self._process = None
                reason = f"{death}, which hung" if self._is_hung else str(death)
                self._take_death(reason, process.running_requests())
                await process.close()
            process = await self._start_again()

    async def _take_messages(self, process: CoreProcess) -> None:
        while True:
            message = await process.receive()
            self._last_sign = time.monotonic()
            if isinstance(message, Pong):
                self._pong.set()
                continue
            if isinstance(message, StepReport):
                self._num_deaths = 0
            try:
                self._front.take_message(message)
            except Exception:  # a bug of ours must not leave the core without a listener
                logger.exception("cannot take in what the engine said")

    def _take_death(self, reason: str, running: set[str]) -> None:
        self.num_crashes += 1
        self._num_deaths += 1
        self._last_death = reason
        logger.error("the engine died: %s", reason)
        self._front.take_crash(running)

    async def _start_again(self) -> CoreProcess:
        while True:
            if self._num_deaths > 1:
                delay = min(MAX_DELAY, FIRST_DELAY * 2 ** (self._num_deaths - 2))
                logger.warning("the engine is started again in %g s", delay)
                await asyncio.sleep(delay)
            try:
                return await self._launch()
            except Exception as error:  # no processes left, no files, no memory: whatever it is, it may pass
                self._starts_in_vain += 1
                self._take_death(str(error), set())
                if self._starts_in_vain >= HOPELESS_STARTS:
                    self._front.fail_all(f"the engine could not be started again: {error}")

    async def _watch_for_hangs(self) -> None:
        while True:
            start = time.monotonic()
            await asyncio.sleep(self._timeout / 8)
            if time.monotonic() - start > self._timeout / 4:
                continue  # this process was held up, and has yet to read what the core said meanwhile
            silence = time.monotonic() - self._last_sign
            if self.is_running and self._front.has_submitted and silence > self._timeout:
                assert self._process is not None
                logger.error("the engine made no step for %.1f s: it is killed", silence)
                self._is_hung = True
                self._process.kill()
