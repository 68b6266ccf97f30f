"""Those who watch the engine have its picture right, whenever they came and however slow they are."""

import asyncio

import pytest

from lightvllm.engine import watchers
from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.engine.trace import StepTrace
from lightvllm.sampling_params import SamplingParams
from tests.engine.rig import Rig, collect, kill, prompt_of, rig, run, until

__all__ = ["rig"]

PROMPT = prompt_of(5, 6, 7, 8, 9, 10)


def params_of(seed: int, max_tokens: int = 20) -> SamplingParams:
    return SamplingParams(seed=seed, max_tokens=max_tokens, ignore_eos=True)


async def watch(engine: AsyncEngine, traces: list[StepTrace]) -> None:
    async for trace in engine.watch():
        traces += [trace]


def blocks_of(traces: list[StepTrace]) -> dict[str, list[int]]:
    """The block tables that one who reads all traces has in the end."""
    tables: dict[str, list[int]] = {}
    assert traces[0].blocks.is_snapshot
    for trace in traces:
        if trace.blocks.is_snapshot:
            tables = {}
        for name in trace.blocks.released:
            tables.pop(name, None)
        for name, blocks in trace.blocks.tables.items():
            tables.setdefault(name, []).extend(blocks)
    return tables


def test_watchers_see_the_steps(rig: Rig) -> None:
    rig.set(step_seconds=0.002)

    async def main() -> None:
        async with rig.engine() as engine:
            early, late = [], []  # type: ignore[var-annotated]
            watchers = [asyncio.create_task(watch(engine, early))]
            await until(lambda: early)
            stream = await engine.add_request("a", PROMPT, params_of(1, 60))
            await until(lambda: len(early) > 20)
            watchers.append(asyncio.create_task(watch(engine, late)))
            await until(lambda: late)
            await collect(stream)
            await until(lambda: early[-1].finished and late[-1].finished)
            assert blocks_of(early) == blocks_of(late) == {}
            batches = [trace for trace in early if trace.batch]
            assert len(batches) == 60
            assert [trace.step for trace in batches] == list(range(1, 61))
            assert blocks_of(early[:30])["a"]
            assert len(late) < len(early)
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            seen = len(early)
            await collect(await engine.add_request("b", PROMPT, params_of(1, 5)))
            assert len(early) == seen

    run(main())


def test_a_watcher_lives_through_a_restart(rig: Rig) -> None:
    rig.set(step_seconds=0.002)

    async def main() -> None:
        async with rig.engine() as engine:
            traces: list[StepTrace] = []
            watcher = asyncio.create_task(watch(engine, traces))
            stream = await engine.add_request("a", PROMPT, params_of(1, 100))
            await until(lambda: len(traces) > 20)
            kill(engine)
            await collect(stream)
            await until(lambda: traces[-1].finished)
            assert sum(trace.blocks.is_snapshot for trace in traces) >= 2
            assert blocks_of(traces) == {}
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    run(main())


def test_a_watcher_that_lags_gets_a_snapshot_and_no_more_than_it_can_hold(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "MAX_TRACES", 16)
    rig.set(step_seconds=0.003)  # or a busy machine takes many steps in at once, and the queue is never seen full

    async def main() -> None:
        async with rig.engine() as engine:
            watching = engine.watch()
            first = await anext(watching)
            assert first.blocks.is_snapshot
            (watcher,) = engine._watchers._watchers
            stream = await engine.add_request("a", PROMPT, params_of(1, 300))
            sizes = [watcher.traces.qsize() async for _ in stream]
            assert max(sizes) <= 16
            assert max(sizes) > 8
            traces = [await anext(watching)]
            while blocks_of(traces):
                traces.append(await asyncio.wait_for(anext(watching), 5))
            assert traces[0].blocks.is_snapshot
            while not watcher.traces.empty():
                traces.append(await anext(watching))
            # Up to date again, it sees all of the next one.
            await collect(await engine.add_request("b", PROMPT, params_of(2, 3)))
            while "b" not in [one.request_id for one in traces[-1].finished]:
                traces.append(await asyncio.wait_for(anext(watching), 5))
            assert blocks_of(traces) == {}
            await watching.aclose()

    run(main())


def test_watching_ends_with_the_engine(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            traces: list[StepTrace] = []
            watcher = asyncio.create_task(watch(engine, traces))
            await until(lambda: traces)
            await engine.stop(0)
            await asyncio.wait_for(watcher, 1)

    run(main())
