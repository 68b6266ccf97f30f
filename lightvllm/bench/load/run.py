"""Sending many requests when they are due, so many at a time."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lightvllm.bench.load.stream import Outcome, Target, send


@dataclass(frozen=True)
class Run:
    """What became of each request, in the order of sending.

    Attributes:
        seconds: from the start to the end of the last request.
    """

    outcomes: list[Outcome]
    seconds: float


async def run_load(
    target: Target,
    bodies: Sequence[bytes],
    arrivals: Iterator[float],
    max_concurrency: int | None = None,
    duration: float | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> Run:
    """Send the requests, each when it is due.

    Args:
        bodies: of the requests.
        arrivals: when each is due, in seconds after the start.
        max_concurrency: a request that is due waits until fewer than this run.
        duration: for so many seconds requests are sent, from the first again when all were; those that run by then are
            waited for. None sends each once.
        on_done: called when a request has ended.
    """
    free = asyncio.Semaphore(max_concurrency) if max_concurrency is not None else None
    start = time.perf_counter()
    tasks: list[asyncio.Task[Outcome]] = []

    async def one(body: bytes, queue_time: float) -> Outcome:
        try:
            outcome = await send(target, body, start)
            outcome.queue_time = queue_time
            return outcome
        finally:
            on_done()
            if free is not None:
                free.release()

    async with asyncio.TaskGroup() as group:
        for body, due in zip(bodies if duration is None else itertools.cycle(bodies), arrivals, strict=False):
            if duration is not None and due > duration:
                break
            await asyncio.sleep(start + due - time.perf_counter())
            if free is not None:
                await free.acquire()
            now = time.perf_counter() - start
            if duration is not None and now > duration:
                break
            tasks.append(group.create_task(one(body, now - due)))
    return Run([task.result() for task in tasks], time.perf_counter() - start)
