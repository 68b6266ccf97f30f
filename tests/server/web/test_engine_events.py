"""However slow a reader is, what it is told adds up to the same."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lightvllm.engine.trace import BlockChanges, StepTrace
from lightvllm.server.debug import engine_events
from lightvllm.server.engine_events import MAX_STEPS, EngineEvent, EventMerger
from tests.engine.test_trace import Engine, Reader


def traces(seed: int = 0, num_steps: int = 120) -> list[tuple[StepTrace, dict[str, list[int]], set[int]]]:
    """Traces of a busy little engine, each with the block tables and the cached blocks after it."""
    rng = random.Random(seed)
    engine = Engine(num_blocks=10)
    shared = [rng.randrange(50) for _ in range(8)]
    found = []
    for number in range(num_steps):
        if rng.random() < 0.5:
            engine.add(f"r{number}", shared + [rng.randrange(50) for _ in range(rng.randrange(1, 6))], max_tokens=6)
        if rng.random() < 0.02:
            engine.core.reset_prefix_cache()
        trace = engine.step()
        found.append(
            (trace, {name: list(table) for name, table in engine.reader.tables.items()}, set(engine.reader.cached))
        )
    return found


class LooseReader(Reader):
    """A reader of merged changes: what came and went between is unknown to it."""

    def take(self, blocks: BlockChanges) -> None:
        if blocks.is_snapshot:
            self.tables, self.cached = {}, set()
        for request_id in blocks.released:
            self.tables.pop(request_id, None)
        for request_id, block_ids in blocks.tables.items():
            self.tables.setdefault(request_id, []).extend(block_ids)
        self.cached = (self.cached | set(blocks.cached)) - set(blocks.uncached)


@pytest.mark.parametrize("seed", range(10))
def test_merged_events_lead_to_the_same_blocks(seed: int) -> None:
    rng = random.Random(seed)
    merger, reader = EventMerger(), LooseReader()
    num_steps = num_preempted = 0
    for trace, tables, cached in traces(seed):
        merger.add(trace)
        num_preempted += len(trace.preempted)
        if rng.random() < 0.3:
            event = merger.take()
            assert event is not None
            reader.take(event.blocks)
            assert set(event.blocks.cached).isdisjoint(event.blocks.uncached)
            assert (reader.tables, reader.cached) == (tables, cached)
            assert event.stats == trace.stats
            num_steps += len(event.steps) + event.num_left_out
    event = merger.take()
    num_steps += 0 if event is None else len(event.steps) + event.num_left_out
    assert num_steps == 120
    assert num_preempted, "nothing happened that is worth a test"


def test_of_many_steps_the_last_are_shown_and_the_others_counted() -> None:
    merger, reader = EventMerger(), LooseReader()
    given = traces()
    for trace, _, _ in given:
        merger.add(trace)
    event = merger.take()
    assert event is not None
    assert [step.step for step in event.steps] == [trace.step for trace, _, _ in given[-MAX_STEPS:]]
    assert event.num_left_out == 120 - MAX_STEPS
    reader.take(event.blocks)
    assert (reader.tables, reader.cached) == given[-1][1:]
    assert merger.take() is None


def test_nothing_is_told_before_the_first_snapshot() -> None:
    merger = EventMerger()
    (first, _, _), (second, tables, _) = traces()[:2]
    merger.add(second)
    assert merger.take() is None
    merger.add(first)
    merger.add(second)
    event = merger.take()
    assert event is not None
    assert event.config == first.config
    assert event.blocks.is_snapshot
    assert event.blocks.tables == tables


def test_the_documented_event_is_one() -> None:
    document = (Path(__file__).parents[3] / "docs" / "engine-events.md").read_text()
    example = json.loads(document.split("```json\n")[1].split("```")[0])
    assert msgspec.to_builtins(msgspec.convert(example, EngineEvent)) == example


class Watched:
    """An engine whose steps come when the test says so."""

    def __init__(self) -> None:
        self.traces: asyncio.Queue[StepTrace | Exception | None] = asyncio.Queue()
        self.is_watched = False

    async def watch(self) -> AsyncGenerator[StepTrace, None]:
        self.is_watched = True
        try:
            while (trace := await self.traces.get()) is not None:
                if isinstance(trace, Exception):
                    raise trace
                yield trace
        finally:
            self.is_watched = False


async def data(events: AsyncGenerator[bytes, None]) -> dict[str, Any]:
    """The next event that is not a comment."""
    async for event in events:
        assert event.endswith(b"\n\n")
        if event.startswith(b"data: "):
            return json.loads(event[6:])
    raise AssertionError("no event followed")


def test_each_step_is_an_event_for_a_fast_reader() -> None:
    async def main() -> None:
        engine = Watched()
        events = engine_events(engine, interval=0)
        for trace, _, _ in traces()[:3]:
            engine.traces.put_nowait(trace)
            event = await data(events)
            assert msgspec.convert(event, EngineEvent).steps[0].batch == trace.batch
            assert [step["step"] for step in event["steps"]] == [trace.step]
        await events.aclose()
        assert not engine.is_watched

    asyncio.run(main())


def test_with_no_interval_each_step_is_an_event_for_a_slow_reader_too() -> None:
    async def main() -> None:
        engine = Watched()
        events = engine_events(engine, interval=0)
        given = [trace for trace, _, _ in traces()[:40]]
        for trace in given:
            engine.traces.put_nowait(trace)
        for trace in given:
            assert [step["step"] for step in (await data(events))["steps"]] == [trace.step]
            await asyncio.sleep(0.002)  # meanwhile others run
        await events.aclose()

    asyncio.run(main())


def test_a_slow_reader_gets_the_rest_in_one_event() -> None:
    async def main() -> None:
        engine = Watched()
        events = engine_events(engine, interval=0.05)
        given = [trace for trace, _, _ in traces()[:40]]
        engine.traces.put_nowait(given[0])
        assert [step["step"] for step in (await data(events))["steps"]] == [given[0].step]
        for trace in given[1:]:
            engine.traces.put_nowait(trace)
        assert [step["step"] for step in (await data(events))["steps"]] == [trace.step for trace in given[1:]]
        await events.aclose()

    asyncio.run(main())


def test_the_stream_ends_with_the_engine_after_its_last_step() -> None:
    async def main() -> None:
        engine = Watched()
        engine.traces.put_nowait(traces()[0][0])
        engine.traces.put_nowait(None)
        events = [event async for event in engine_events(engine, interval=0) if event.startswith(b"data: ")]
        assert len(events) == 1

    asyncio.run(main())


def test_what_ends_the_watch_is_raised() -> None:
    async def main() -> None:
        engine = Watched()
        engine.traces.put_nowait(RuntimeError("the engine is gone"))
        with pytest.raises(RuntimeError, match="the engine is gone"):
            async for _ in engine_events(engine, interval=0):
                pass

    asyncio.run(main())
