"""The engine requests behind one HTTP request: one for each of its prompts, run together."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.engine.streams import RequestDelta, RequestFailed, RequestStream
from lightvllm.errors import ParameterError
from lightvllm.sampling_params import SamplingParams
from lightvllm.server.protocol.sampling import GenerationFields

# What several requests say, each with its prompt's index; None when one ends.
_News = asyncio.Queue[tuple[int, RequestDelta] | None | Exception]


class Generation:
    """Requests that the engine has accepted."""

    def __init__(self, streams: Sequence[RequestStream]) -> None:
        self.streams = streams

    async def final(self) -> list[RequestDelta]:
        """All of the outputs, by prompt. The first failure is raised.

        Raises:
            RequestFailed: see there.
        """
        tasks = [asyncio.ensure_future(stream.final()) for stream in self.streams]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            await _cancel(tasks)

    async def deltas(self) -> AsyncGenerator[list[tuple[int, RequestDelta]], None]:
        """What the requests got since the last look: (index of the prompt, delta) each. Close it where it is left.

        Raises:
            RequestFailed: see there.
        """
        if len(self.streams) == 1:
            async for delta in self.streams[0]:
                yield [(0, delta)]
            return
        # A reader that waits for room leaves it to the engine's stream to merge what comes meanwhile.
        queue: _News = asyncio.Queue(maxsize=len(self.streams))
        tasks = [asyncio.ensure_future(_read(i, stream, queue)) for i, stream in enumerate(self.streams)]
        num_unfinished = len(tasks)
        try:
            while num_unfinished:
                news = [await queue.get()]
                while not queue.empty():
                    news.append(queue.get_nowait())
                batch = []
                for item in news:
                    if isinstance(item, Exception):
                        raise item
                    if item is None:
                        num_unfinished -= 1
                    else:
                        batch.append(item)
                yield batch
        finally:
            await _cancel(tasks)


@asynccontextmanager
async def submitted(
    engine: AsyncEngine,
    request: GenerationFields,
    engine_id: str,
    prompts: Sequence[TokenizedPrompt],
    params: SamplingParams,
) -> AsyncIterator[Generation]:
    """Have the engine run all prompts; whatever has not finished when the context is left is aborted.

    Args:
        engine_id: what the engine calls the request; several prompts get a number each.
        params: what the request means to the engine.

    Raises:
        As `AsyncEngine.add_request`, with the names of the request's fields.
    """
    streams: list[RequestStream] = []
    try:
        for index, prompt in enumerate(prompts):
            own_id = engine_id if len(prompts) == 1 else f"{engine_id}-{index}"
            with request.own_names():
                streams.append(
                    await engine.add_request(own_id, prompt, params, priority=request.priority, timeout=request.timeout)
                )
        yield Generation(streams)
    except RequestFailed as error:
        if error.kind != "structure":
            raise
        with request.own_names():
            raise ParameterError("structured_outputs", str(error)) from error
    finally:
        for stream in streams:
            stream.abort()


async def _read(index: int, stream: RequestStream, queue: _News) -> None:
    try:
        async for delta in stream:
            await queue.put((index, delta))
        await queue.put(None)
    except Exception as error:  # for the one that reads the queue
        await queue.put(error)


async def _cancel(tasks: "Sequence[asyncio.Future[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
