"""Those who watch the engine's steps: each gets the traces at its own pace."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from lightvllm.engine.messages import WatchSteps
from lightvllm.engine.trace import StepTrace

# Traces a watcher may be behind; who falls further back gets a snapshot.
MAX_TRACES = 256


class Watchers:
    """All of them. The core makes traces only while there are any.

    Args:
        send: gives a message to the core, if there is one.
    """

    def __init__(self, send: Callable[[WatchSteps], None]) -> None:
        self._send = send
        self._watchers: set[_Watcher] = set()
        self._is_closed = False

    async def watch(self) -> AsyncGenerator[StepTrace, None]:
        """See `AsyncEngine.watch`."""
        if self._is_closed:
            return
        watcher = _Watcher()
        self._watchers.add(watcher)
        self._send(WatchSteps(True))
        try:
            while (trace := await watcher.traces.get()) is not None:
                yield trace
        finally:
            self._watchers.discard(watcher)
            if not self._watchers:
                self._send(WatchSteps(False))

    def show(self, trace: StepTrace) -> None:
        """Pass a trace on."""
        behind = [watcher for watcher in self._watchers if not watcher.put(trace)]
        if behind:
            self._send(WatchSteps(True))

    def take_ready(self) -> None:
        """There is a new core, which knows of no watchers."""
        if self._watchers:
            self._send(WatchSteps(True))

    def close(self) -> None:
        """No traces will follow: each watcher comes to its end."""
        self._is_closed = True
        for watcher in self._watchers:
            watcher.traces.put_nowait(None)


class _Watcher:
    """Someone's traces that they have not read yet; None is the end."""

    def __init__(self) -> None:
        self.traces: asyncio.Queue[StepTrace | None] = asyncio.Queue()
        self._needs_snapshot = True

    def put(self, trace: StepTrace) -> bool:
        """False if the reader is too far behind: its traces are dropped until there is a snapshot."""
        if self._needs_snapshot and not trace.blocks.is_snapshot:
            return True
        self._needs_snapshot = self.traces.qsize() >= MAX_TRACES
        if self._needs_snapshot:
            while not self.traces.empty():
                self.traces.get_nowait()
            return False
        self.traces.put_nowait(trace)
        return True
