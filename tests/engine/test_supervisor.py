"""The core's process is started again whenever it is not there, does not answer, or does not start."""

import asyncio
import signal
import time
from itertools import pairwise

import pytest

from lightvllm.config import DEFAULT_MODEL, EngineConfig
from lightvllm.engine import supervisor
from lightvllm.engine.async_engine import AsyncEngine, RequestFailed
from lightvllm.engine.process import CoreProcess
from lightvllm.errors import EngineUnavailable
from lightvllm.sampling_params import SamplingParams
from tests.engine import fake_core
from tests.engine.rig import Log, Rig, collect, expected, kill, prompt_of, rig, run, until

__all__ = ["rig"]

PROMPT = prompt_of(5, 6, 7)
PARAMS = SamplingParams(seed=1, max_tokens=20, ignore_eos=True)


async def check_works(engine: AsyncEngine, name: str) -> None:
    stream = await engine.add_request(name, PROMPT, PARAMS)
    assert (await collect(stream)).content == expected(engine, PROMPT, PARAMS).content


def test_health_follows_the_process(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PING_TIMEOUT", 0.2)

    async def main() -> None:
        async with rig.engine() as engine:
            assert (await engine.health()).is_healthy
            await asyncio.sleep(0.3)
            assert (await engine.health()).is_healthy  # idle for long: it was asked
            kill(engine, signal.SIGSTOP)
            await asyncio.sleep(0.3)
            first, second = await asyncio.gather(engine.health(), engine.health())
            assert first.status == second.status == "hung"
            assert (await engine.health()).status == "hung"  # to have asked is no sign of life
            kill(engine, signal.SIGCONT)
            await until(lambda: engine._supervisor._pong.is_set())
            assert (await engine.health()).is_healthy
            kill(engine)
            await until(lambda: rig.log.crashes)
            health = await engine.health()
            assert health.status == "restarting"
            assert "ended with code -9" in health.message
            await until(lambda: rig.log.num_ready == 2)
            assert (await engine.health()).is_healthy

    run(main())


def test_a_busy_core_that_is_silent_is_not_healthy_for_ever(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PING_TIMEOUT", 0.1)

    async def main() -> None:
        async with rig.engine(engine_timeout=0.8) as engine:
            stream = await engine.add_request("a", prompt_of(fake_core.HANG, 1, 0), PARAMS)
            await asyncio.sleep(0.4)
            assert (await engine.health()).is_healthy  # a step may take long
            await until(lambda: rig.log.crashes, 2)
            assert len((await collect(stream)).completions[0].token_ids) == 20

    run(main())


def test_starts_back_off_and_become_hopeless_and_recover(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.1)
    monkeypatch.setattr(supervisor, "MAX_DELAY", 0.5)

    async def main() -> None:
        async with rig.engine() as engine:
            rig.set(refusals=6)
            kill(engine)
            await until(lambda: rig.log.crashes)
            stream = await engine.add_request("a", PROMPT, PARAMS)  # there is hope yet
            with pytest.raises(RequestFailed, match="could not be started again") as failure:
                await collect(stream)
            assert failure.value.kind == "engine"
            health = await engine.health()
            assert health.status == "failed"
            assert "could not be started" in health.message
            assert "code 4" in health.message
            with pytest.raises(EngineUnavailable, match="cannot be started"):
                await engine.add_request("b", PROMPT, PARAMS)
            await until(lambda: rig.log.num_ready == 2, 20)
            assert (await engine.health()).is_healthy
            await check_works(engine, "c")
            gaps = [later - earlier for earlier, later in pairwise(rig.start_times()[1:])]
            # The first comes at once; the ones after wait for 0.1, 0.2, 0.4, 0.5, 0.5, 0.5 seconds.
            assert len(gaps) == 6
            for gap, least in zip(gaps, (0.1, 0.2, 0.4, 0.5, 0.5, 0.5), strict=True):
                assert least <= gap < least + 3
            # A step was made: the next crash is the first of a row again.
            kill(engine)
            await until(lambda: rig.log.num_ready == 3, 3)

    run(main())


def test_idle_crashes_in_a_row_back_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.3)

    async def main() -> None:
        async with rig.engine() as engine:
            for count in range(1, 4):
                kill(engine)
                await until(lambda count=count: rig.log.num_ready > count)
            _, second, third = (later - earlier for earlier, later in pairwise(rig.start_times()))
            assert second >= 0.3
            assert third >= 0.6

    run(main())


@pytest.mark.parametrize("how", ["exit", "error"])
def test_the_first_start_may_fail(rig: Rig, how: str) -> None:
    rig.set(refusals=1, refuse_by=how)
    wanted = "model: the checkpoint has gone, refusal 1" if how == "error" else "the engine: process .* code 4"

    async def main() -> None:
        engine = AsyncEngine(EngineConfig(model=str(DEFAULT_MODEL)))
        with pytest.raises(ValueError, match=wanted):
            await engine.start()
        assert engine.pid is None
        await engine.stop(0)
        rig.check_clean()

    run(main())


def test_a_start_that_fails_with_words_tells_them(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            rig.set(refusals=1, refuse_by="error")
            kill(engine)
            await until(lambda: len(rig.log.crashes) == 2)
            assert "the checkpoint has gone" in (await engine.health()).message
            await until(lambda: rig.log.num_ready == 2)

    run(main())


def test_a_start_that_hangs_is_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            monkeypatch.setattr(supervisor, "START_TIMEOUT", 2.0)
            rig.set(refusals=1, refuse_by="hang")
            kill(engine)
            await until(lambda: len(rig.log.crashes) == 2)
            assert "was not ready within 2 s" in (await engine.health()).message
            await until(lambda: rig.log.num_ready == 2)

    run(main())


@pytest.mark.parametrize("again", [False, True])
def test_stopping_amid_a_start_leaves_nothing(rig: Rig, again: bool) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            rig.set(refusals=1, refuse_by="hang")
            if again:
                kill(engine)
                await until(lambda: len(rig.start_times()) == 2)
                await engine.add_request("a", PROMPT, PARAMS)
            else:
                other = AsyncEngine(EngineConfig(model=str(DEFAULT_MODEL)))
                starting = asyncio.create_task(other.start())
                await until(lambda: len(rig.start_times()) == 2)
                starting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await starting
                await other.stop(0)

    run(main())


def test_a_process_that_cannot_be_made_is_tried_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.05)
    start, num_failures = CoreProcess.start, 0

    async def fail(process: CoreProcess) -> None:
        nonlocal num_failures
        num_failures += 1
        if num_failures <= 3:
            raise [OSError("Too many open files"), MemoryError(), RuntimeError("no more threads")][num_failures - 1]
        await start(process)

    async def main() -> None:
        async with rig.engine() as engine:
            monkeypatch.setattr(CoreProcess, "start", fail)
            kill(engine)
            await until(lambda: rig.log.num_ready == 2)
            await check_works(engine, "a")
            assert len(rig.log.crashes) == 4

    run(main())


def test_the_first_process_that_cannot_be_made_is_an_error(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(process: CoreProcess) -> None:
        raise OSError("Too many open files")

    async def main() -> None:
        monkeypatch.setattr(CoreProcess, "start", fail)
        engine = AsyncEngine(EngineConfig(model=str(DEFAULT_MODEL)))
        with pytest.raises(ValueError, match="the engine: Too many open files"):
            await engine.start()
        await engine.stop(0)
        rig.check_clean()

    run(main())


@pytest.mark.parametrize("method", ["on_ready", "on_add", "on_step", "on_first_token", "on_finish", "on_crash"])
def test_an_observer_that_fails_stops_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    rig.set(step_seconds=0.01)

    def fail(log: Log, *args: object) -> None:
        raise RuntimeError("metrics are broken")

    async def main() -> None:
        async with rig.engine() as engine:
            monkeypatch.setattr(Log, method, fail)
            stream = await engine.add_request("a", PROMPT, PARAMS)
            late = await engine.add_request("late", PROMPT, PARAMS, timeout=0.05)
            await asyncio.sleep(0.1)
            kill(engine)
            assert (await collect(stream)).content == expected(engine, PROMPT, PARAMS).content
            with pytest.raises(RequestFailed, match="timeout"):
                await late.final()
            assert "metrics are broken" in caplog.text

    run(main())
    caplog.clear()


def test_a_front_that_was_held_up_does_not_blame_the_core(rig: Rig) -> None:
    rig.set(step_seconds=0.01)

    async def main() -> None:
        async with rig.engine(engine_timeout=0.5) as engine:
            params = SamplingParams(seed=1, max_tokens=250, ignore_eos=True)
            stream = await engine.add_request("a", PROMPT, params)
            for _ in range(2):
                await until(lambda: rig.log.num_output_tokens > 5)
                await asyncio.sleep(0.2)
                time.sleep(1.0)
            assert (await collect(stream)).content == expected(engine, PROMPT, params).content
            assert rig.log.crashes == []

    run(main())
