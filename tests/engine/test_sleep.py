"""Sleeping across two processes: what is refused meanwhile, and what a crash changes. The worker has no model."""

import asyncio
import signal
from typing import Any

import msgspec
import pytest

from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.engine.core import EngineCore
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.errors import EngineAsleep, EngineBusy, EngineUnavailable
from lightvllm.sampling_params import SamplingParams
from tests.engine.fakes import Collector, FakeExecutor, expected_output, make_request
from tests.engine.rig import Rig, collect, expected, kill, prompt_of, rig, run, until

__all__ = ["rig"]

PROMPT = prompt_of(5, 6, 7, 8, 9, 10)
PARAMS = SamplingParams(seed=1, max_tokens=20, ignore_eos=True)
ENDLESS = SamplingParams(seed=1, max_tokens=400, ignore_eos=True)


async def check_answers(engine: AsyncEngine, name: str) -> None:
    """A request gives what it should."""
    output = await collect(await engine.add_request(name, PROMPT, PARAMS))
    assert output.content == expected(engine, PROMPT, PARAMS).content


async def check_refuses(engine: AsyncEngine) -> None:
    assert engine.is_sleeping
    with pytest.raises(EngineAsleep, match="sleeps: wake it up first"):
        await engine.add_request("refused", PROMPT, PARAMS)
    assert engine.num_unfinished == 0


class TestCore:
    CONFIG = SchedulerConfig(num_blocks=64, max_model_len=64, block_size=4)

    def test_nothing_that_was_cached_is_read_again(self) -> None:
        """The worker's slots hold rubbish afterwards, and it looks at what it reads."""
        core = EngineCore(FakeExecutor(self.CONFIG), self.CONFIG)
        for name in ("before", "after"):
            collector = Collector()
            request = make_request(name, list(range(20)), max_tokens=5)
            core.add_request(request)
            while core.has_unfinished():
                collector.take(core.step())
            assert collector.token_ids[name] == expected_output(request, 64, 256)[0]
            core.sleep(1)
            core.wake_up()
        assert core.stats().prefix_cache_hits == 0

    def test_a_sleep_that_fails_changes_nothing(self) -> None:
        executor = FakeExecutor(self.CONFIG)
        core = EngineCore(executor, self.CONFIG)

        def fail(level: int) -> None:
            raise ValueError("level: the host is full")

        executor.sleep = fail  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="the host is full"):
            core.sleep(1)
        assert not core.is_sleeping
        core.add_request(make_request("a", [1, 2, 3], max_tokens=1))
        assert len(core.step()) == 1

    def test_no_step_is_under_way_then(self) -> None:
        """One was submitted ahead for a request that was aborted since."""
        core = EngineCore(FakeExecutor(self.CONFIG, runs_ahead=True), self.CONFIG)
        core.add_request(make_request("aborted", list(range(20)), max_tokens=9))
        core.step()
        assert core.under_way() == ["aborted"]
        core.abort(["aborted"])
        core.sleep(1)
        assert core.under_way() == []
        core.wake_up()
        request = make_request("after", list(range(20)), max_tokens=5)
        core.add_request(request)
        collector = Collector()
        while core.has_unfinished():
            collector.take(core.step())
        assert collector.token_ids["after"] == expected_output(request, 64, 256)[0]

    def test_the_awake_are_not_woken(self) -> None:
        executor = FakeExecutor(self.CONFIG)
        woken: list[Any] = []
        executor.wake_up = woken.append  # type: ignore[method-assign]
        EngineCore(executor, self.CONFIG).wake_up()
        assert woken == []


def test_requests_are_refused_until_it_is_woken_up(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            await check_answers(engine, "before")
            for level in (1, 2):
                await engine.sleep(level)
                await check_refuses(engine)
                health = await engine.health()
                assert (health.status, health.message[:17]) == ("ok", "the engine sleeps")
                await engine.wake_up(["weights"])
                await check_refuses(engine)
                await engine.wake_up(["kv_cache"])
                assert not engine.is_sleeping
                assert (await engine.health()).message == ""
                await check_answers(engine, f"after {level}")
            await engine.wake_up()

    run(main())


def test_it_does_not_sleep_while_requests_run(rig: Rig) -> None:
    async def main() -> None:
        rig.set(step_seconds=0.01)
        async with rig.engine() as engine:
            stream = await engine.add_request("a", PROMPT, ENDLESS)
            with pytest.raises(EngineBusy, match="while 1 requests wait or run"):
                await engine.sleep()
            assert not engine.is_sleeping
            engine.abort("a")
            await collect(stream)
            await engine.sleep()
            await check_refuses(engine)

    run(main())


def test_many_who_ask_at_once(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            await asyncio.gather(*(engine.sleep(1 + i % 2) for i in range(6)))
            await check_refuses(engine)
            await asyncio.gather(*(engine.wake_up() for _ in range(6)))
            assert not engine.is_sleeping
            await check_answers(engine, "after")

    run(main())


@pytest.mark.parametrize(
    ("call", "words"), [(lambda e: e.sleep(7), "level: 7"), (lambda e: e.wake_up(["x"]), "tags: 'x'")]
)
def test_what_is_not_there_is_refused_here(call: Any, words: str, rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            with pytest.raises(ValueError, match=words):
                await call(engine)
            assert not engine.is_sleeping
            await check_answers(engine, "after")

    run(main())


def test_who_dies_asleep_sleeps_again(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            await engine.sleep(2)
            kill(engine)
            await until(lambda: rig.log.num_ready == 2)
            await check_refuses(engine)
            await engine.wake_up()
            await check_answers(engine, "after")

    run(main())


def test_a_death_on_the_way_is_told(rig: Rig) -> None:
    """Who was awake before is awake after it, who slept sleeps."""

    async def main() -> None:
        async with rig.engine() as engine:
            await check_answers(engine, "before")
            for change, sleeps in ((engine.sleep, False), (engine.wake_up, True)):
                if sleeps:
                    await engine.sleep()
                num_ready = rig.log.num_ready
                kill(engine, signal.SIGSTOP)
                task = asyncio.create_task(change())
                await asyncio.sleep(0.05)
                kill(engine)
                with pytest.raises(EngineUnavailable, match="died before"):
                    await task
                await until(lambda n=num_ready: rig.log.num_ready == n + 1)
                assert engine.is_sleeping is sleeps
            await engine.wake_up()
            await check_answers(engine, "after")

    run(main())


def test_one_that_hangs_on_the_way_is_killed(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine(engine_timeout=0.5) as engine:
            kill(engine, signal.SIGSTOP)
            with pytest.raises(EngineUnavailable, match="died before"):
                await engine.sleep()
            await until(lambda: rig.log.num_ready == 2)
            await check_answers(engine, "after")

    run(main())


def test_no_engine_hears_it(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            kill(engine)
            await until(lambda: rig.log.crashes)
            with pytest.raises(EngineUnavailable, match="can neither sleep nor wake up now"):
                await engine.sleep()
            assert not engine.is_sleeping
            await check_answers(engine, "after")

    run(main())


def test_what_the_worker_says_is_told(rig: Rig) -> None:
    """And it is as it was before."""

    async def main() -> None:
        async with rig.engine() as engine:
            (rig.folder / "options.json").write_bytes(msgspec.json.encode({"sleep_error": "level: the host is full"}))
            kill(engine)
            await until(lambda: rig.log.num_ready == 2)
            with pytest.raises(EngineUnavailable, match="level: the host is full"):
                await engine.sleep()
            assert not engine.is_sleeping
            await check_answers(engine, "after")

    run(main())
