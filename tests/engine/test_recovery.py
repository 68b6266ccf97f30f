"""Requests live through whatever happens to the core's process: no token lost, none twice, the same as without it."""

import asyncio
import random
import signal
import time

import pytest

from lightvllm.engine.async_engine import MAX_CRASHES, AsyncEngine, RequestFailed
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.sampling_params import SamplingParams
from tests.engine import fake_core
from tests.engine.rig import Output, Rig, collect, expected, kill, prompt_of, random_prompt, rig, run, until

__all__ = ["rig"]


async def answer(
    engine: AsyncEngine, name: str, prompt: TokenizedPrompt, params: SamplingParams
) -> tuple[Output, Output]:
    """What a request gives, and what it should."""
    stream = await engine.add_request(name, prompt, params)
    return await collect(stream, params.n), expected(engine, prompt, params)


async def check_all(
    engine: AsyncEngine, requests: dict[str, tuple[TokenizedPrompt, SamplingParams]]
) -> dict[str, Output]:
    """Run requests together; each must give what it gives undisturbed. Returns the outputs."""
    answers = await asyncio.gather(*(answer(engine, name, *request) for name, request in requests.items()))
    for name, (output, wanted) in zip(requests, answers, strict=True):
        assert output.content == wanted.content, name
    return {name: output for name, (output, _) in zip(requests, answers, strict=True)}


def random_requests(
    rng: random.Random, count: int, least: int, most: int
) -> dict[str, tuple[TokenizedPrompt, SamplingParams]]:
    """Requests of all kinds: several completions, stop strings and tokens, log-probabilities."""
    requests = {}
    for index in range(count):
        params = SamplingParams(
            seed=rng.randrange(2**31),
            max_tokens=rng.randint(least, most),
            min_tokens=rng.choice([0, 0, least // 2]),
            n=rng.choice([1, 1, 1, 3]),
            ignore_eos=rng.random() < 0.7,
            stop=rng.choice([None, None, ["AB", "!", "0 "], ["1", "12"]]),
            include_stop_str_in_output=rng.random() < 0.5,
            stop_token_ids=rng.choice([None, None, [7]]),
            logprobs=rng.choice([None, None, 1]),
            prompt_logprobs=rng.choice([None, None, 1]),
            detokenize=True,
        )
        requests[f"r{index}"] = random_prompt(rng), params
    return requests


@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments_change_nothing(rig: Rig, seed: int) -> None:
    rng = random.Random(seed)
    rig.set(step_seconds=0.004)
    num_kills = 5

    async def main() -> None:
        async with rig.engine({"max_num_seqs": 24, "max_num_batched_tokens": 2048}) as engine:
            running = asyncio.create_task(check_all(engine, random_requests(rng, 32, 20, 200)))
            for count in range(num_kills):
                await until(lambda count=count: rig.log.num_ready > count, what="a start")
                num_tokens = rig.log.num_output_tokens
                await until(lambda num_tokens=num_tokens: rig.log.num_output_tokens > num_tokens + 32 or running.done())
                await asyncio.sleep(rng.random() * 0.1)
                if running.done():
                    break
                kill(engine)
                await until(lambda count=count: len(rig.log.crashes) > count, what="a crash")
            await running
            assert len(rig.log.crashes) >= 3, "hardly disturbed"
            assert max(record.num_crashes for record in rig.log.records.values()) >= 3
            assert rig.log.num_first_tokens == 32
            stats = engine.stats()
            assert stats is not None
            assert (stats.num_used_blocks, stats.num_running, stats.num_waiting) == (0, 0, 0)

    run(main())


@pytest.mark.parametrize("trigger", [fake_core.DIE, fake_core.BUG, fake_core.BABBLE, fake_core.SHOUT])
def test_a_crash_after_some_tokens_is_survived(rig: Rig, trigger: int, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            params = SamplingParams(seed=3, max_tokens=40, ignore_eos=True, logprobs=1, prompt_logprobs=1, n=2)
            requests = {f"r{index}": (prompt_of(4, 5, 6, index), params) for index in range(8)}
            alone = SamplingParams(seed=3, max_tokens=40, ignore_eos=True)
            requests["bad"] = prompt_of(trigger, 2, 20), alone  # goes off after 20 tokens, twice
            await check_all(engine, requests)
            assert len(rig.log.crashes) == (0 if trigger == fake_core.SHOUT else 2)
        pieces = [r.getMessage() for r in caplog.records if r.name == "lightvllm.engine.core"]
        num_shouts = sum(piece.count("shout") for piece in pieces)
        if trigger == fake_core.SHOUT:
            assert num_shouts > fake_core.HUGE_LINE // 5
        assert max(map(len, pieces), default=0) <= 1 << 17

    run(main())


@pytest.mark.parametrize("trigger", [fake_core.RAISE, fake_core.NO_MEMORY])
def test_a_failed_step_costs_the_request_that_caused_it(rig: Rig, trigger: int) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            params = SamplingParams(seed=3, max_tokens=30, ignore_eos=True)
            stream = await engine.add_request("bad", prompt_of(trigger, 0, 5), params)
            requests = {f"r{index}": (prompt_of(4, 5, 6, index), params) for index in range(31)}
            await check_all(engine, requests)
            with pytest.raises(RequestFailed, match=r"the model broke|no room") as failure:
                await collect(stream)
            assert failure.value.kind == "engine"
            assert rig.log.crashes == []  # the core caught it itself
            assert rig.log.records["bad"].finish_reasons == ["error"]
            assert rig.log.records["bad"].num_output_tokens == [5]

    run(main())


@pytest.mark.parametrize("after", [0, 7])
def test_a_request_that_kills_the_core_each_time_is_the_only_one_to_fail(rig: Rig, after: int) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            params = SamplingParams(seed=3, max_tokens=30, ignore_eos=True)
            stream = await engine.add_request("bad", prompt_of(fake_core.DIE, 0, after), params)
            requests = {f"r{index}": (prompt_of(4, 5, 6, index), params) for index in range(31)}
            await check_all(engine, requests)
            with pytest.raises(RequestFailed, match=f"died {MAX_CRASHES} times") as failure:
                await collect(stream)
            assert failure.value.kind == "engine"
            # With tokens before its first crash, that one began a new row.
            assert len(rig.log.crashes) == MAX_CRASHES
            assert rig.log.records["bad"].num_crashes == MAX_CRASHES
            # And the engine is as good as new.
            await check_all(engine, {"next": (prompt_of(1, 2, 3), params)})

    run(main())


def test_one_who_comes_while_a_suspect_runs_is_not_taken_down_with_it(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            params = SamplingParams(seed=3, max_tokens=30, ignore_eos=True)
            bad = [await engine.add_request(f"bad{i}", prompt_of(fake_core.DIE, 0, 0), params) for i in range(2)]
            tasks = []
            for index in range(15):
                tasks.append(asyncio.create_task(answer(engine, f"r{index}", prompt_of(5, index), params)))
                await asyncio.sleep(0.1)
            for output, wanted in await asyncio.gather(*tasks):
                assert output.content == wanted.content
            for stream in bad:
                with pytest.raises(RequestFailed, match="died"):
                    await collect(stream)

    run(main())


def test_requests_that_only_waited_are_not_blamed(rig: Rig) -> None:
    """Of 30 requests the core runs two at a time; kills come before most of them have had their turn."""
    rig.set(step_seconds=0.004)

    async def main() -> None:
        async with rig.engine({"max_num_seqs": 2}) as engine:
            rng = random.Random(1)
            running = asyncio.create_task(check_all(engine, random_requests(rng, 30, 15, 30)))
            for count in range(MAX_CRASHES + 2):
                await until(lambda count=count: rig.log.num_ready > count)
                num_tokens = rig.log.num_output_tokens
                await until(lambda num_tokens=num_tokens: rig.log.num_output_tokens > num_tokens + 8)
                kill(engine)
                await until(lambda count=count: len(rig.log.crashes) > count)
            await running
            assert max(record.num_crashes for record in rig.log.records.values()) == MAX_CRASHES + 2

    run(main())


def test_a_hung_core_is_replaced(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.set(step_seconds=0.02)  # so that the last to come hangs it before the first has ended

    async def main() -> None:
        async with rig.engine(engine_timeout=0.6) as engine:
            params = SamplingParams(seed=3, max_tokens=30, ignore_eos=True)
            requests = {f"r{index}": (prompt_of(4, 5, 6, index), params) for index in range(8)}
            requests["bad"] = prompt_of(fake_core.HANG, 1, 20), params
            await check_all(engine, requests)
            assert rig.log.crashes == [9]
            assert "made no step for" in caplog.text

    run(main())


def test_a_stopped_process_is_replaced_when_it_is_stopped_for_too_long(rig: Rig) -> None:
    rig.set(step_seconds=0.002)

    async def main() -> None:
        async with rig.engine(engine_timeout=0.6) as engine:
            params = SamplingParams(seed=3, max_tokens=150, ignore_eos=True)
            requests = {f"r{index}": (prompt_of(4, 5, 6, index), params) for index in range(8)}
            running = asyncio.create_task(check_all(engine, requests))
            await until(lambda: rig.log.num_output_tokens > 40)
            kill(engine, signal.SIGSTOP)
            await asyncio.sleep(0.2)  # no harm in that
            kill(engine, signal.SIGCONT)
            num_tokens = rig.log.num_output_tokens
            await until(lambda: rig.log.num_output_tokens > num_tokens + 40)
            assert rig.log.crashes == []
            kill(engine, signal.SIGSTOP)
            assert await until(lambda: rig.log.crashes) >= 0.5
            await running

    run(main())


def test_an_idle_core_that_dies_is_replaced(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            kill(engine)
            await until(lambda: rig.log.num_ready == 2)
            assert (await engine.health()).is_healthy
            params = SamplingParams(seed=3, max_tokens=5, ignore_eos=True)
            await check_all(engine, {"a": (prompt_of(1, 2, 3), params)})
            assert rig.log.crashes == [0]

    run(main())


def test_requests_may_come_and_go_while_there_is_no_core(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            params = SamplingParams(seed=3, max_tokens=50, ignore_eos=True)
            kill(engine)
            await until(lambda: rig.log.crashes)
            assert engine.pid is None or rig.log.num_ready == 1
            assert (await engine.health()).status == "restarting"
            kept = await engine.add_request("kept", prompt_of(1, 2, 3), params)
            dropped = await engine.add_request("dropped", prompt_of(1, 2, 3), params)
            late = await engine.add_request("late", prompt_of(1, 2, 3), params, timeout=0.01)
            dropped.abort()
            assert (await collect(dropped)).completions[0].finish_reason == "abort"
            with pytest.raises(RequestFailed, match="timeout") as failure:
                await collect(late)
            assert failure.value.kind == "deadline"
            assert rig.log.num_ready == 1
            assert (await collect(kept)).content == expected(engine, prompt_of(1, 2, 3), params).content
            assert rig.log.records["kept"].num_crashes == 0

    run(main())


def test_recovery_is_quick(rig: Rig) -> None:
    rig.set(step_seconds=0.002)

    async def main() -> None:
        async with rig.engine() as engine:
            params = SamplingParams(seed=3, max_tokens=100, ignore_eos=True)
            running = asyncio.create_task(answer(engine, "a", prompt_of(1, 2, 3), params))
            await until(lambda: rig.log.num_output_tokens > 20)
            kill(engine)
            start = time.monotonic()
            await until(lambda: rig.log.num_ready == 2)
            assert time.monotonic() - start < 5
            output, wanted = await running
            assert output.content == wanted.content

    run(main())
