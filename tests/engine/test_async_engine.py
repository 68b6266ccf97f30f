"""The engine as a server sees it: streams, limits, ends. The core is a real process, its worker has no model."""

import asyncio
import random
import time
from typing import Any

import psutil
import pytest

from lightvllm.config import DEFAULT_MODEL, EngineConfig
from lightvllm.engine.async_engine import AsyncEngine, RequestFailed
from lightvllm.errors import EngineOverloaded, EngineUnavailable, ParameterError
from lightvllm.sampling_params import SamplingParams
from tests.engine.rig import Gathered, Output, Rig, collect, expected, kill, prompt_of, random_prompt, rig, run, until

__all__ = ["rig"]

PROMPT = prompt_of(5, 6, 7, 8, 9, 10)
ENDLESS = SamplingParams(seed=1, max_tokens=400, ignore_eos=True)


def params_of(seed: int, max_tokens: int = 20, **kwargs: Any) -> SamplingParams:
    return SamplingParams(**{"seed": seed, "max_tokens": max_tokens, "ignore_eos": True, **kwargs})


async def is_clean(engine: AsyncEngine) -> None:
    """The core has forgotten everything within a second."""

    def clean() -> bool:
        stats = engine.stats()
        return stats is not None and (stats.num_used_blocks, stats.num_running, stats.num_waiting) == (0, 0, 0)

    await until(clean, 1.0, "a clean core")


def test_streams_give_what_a_request_alone_gives(rig: Rig) -> None:
    async def main() -> None:
        rng = random.Random(0)
        async with rig.engine() as engine:
            requests = [
                (
                    random_prompt(rng),
                    params_of(index, rng.randint(1, 60), n=1 + index % 3, logprobs=1, prompt_logprobs=0),
                )
                for index in range(24)
            ]
            streams = [await engine.add_request(f"r{i}", *request) for i, request in enumerate(requests)]
            outputs = await asyncio.gather(
                *(collect(stream, request[1].n) for stream, request in zip(streams, requests, strict=True))
            )
            for request, output in zip(requests, outputs, strict=True):
                assert output.content == expected(engine, *request).content
            assert rig.log.num_first_tokens == 24
            assert rig.log.num_output_tokens == sum(len(c.token_ids) for o in outputs for c in o.completions)
            assert rig.log.num_inter_tokens == rig.log.num_output_tokens - sum(r[1].n for r in requests)
            for index, (prompt, params) in enumerate(requests):
                record = rig.log.records[f"r{index}"]
                assert record.num_prompt_tokens == len(prompt.token_ids)
                assert record.num_output_tokens == [params.max_tokens] * params.n
                assert record.finish_reasons == ["length"] * params.n
                times = [record.arrival_time, record.first_scheduled_time, record.first_token_time]
                times += [record.last_token_time, record.finished_time]
                assert times == sorted(times)  # type: ignore[type-var]
            await is_clean(engine)

    run(main())


def test_final_is_all_of_it_at_once(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            params = params_of(3, n=3, logprobs=0, prompt_logprobs=1)
            stream = await engine.add_request("a", PROMPT, params)
            output = Output([Gathered(), Gathered(), Gathered()])
            output.take(await stream.final())
            assert output.content == expected(engine, PROMPT, params).content
            stream = await engine.add_request("b", PROMPT, ENDLESS, timeout=0.02)
            with pytest.raises(RequestFailed, match=r"timeout: .* within 0.02 s"):
                await stream.final()

    run(main())


def test_a_stop_string_ends_one_completion_of_several(rig: Rig) -> None:
    """The core is a step ahead when it hears of it."""
    rig.set(step_seconds=0.002)

    async def main() -> None:
        async with rig.engine() as engine:
            for seed in range(12):
                params = params_of(seed, 60, n=4, stop=["A", "B1", "!"], include_stop_str_in_output=seed % 2 == 1)
                stream = await engine.add_request(f"r{seed}", PROMPT, params)
                output = await collect(stream, 4)
                assert output.content == expected(engine, PROMPT, params).content
                assert {c.stop_reason for c in output.completions} <= {"A", "B1", "!", None}
            reasons = [reason for record in rig.log.records.values() for reason in record.finish_reasons]
            assert reasons.count("stop") > 24
            await is_clean(engine)

    run(main())


def test_an_abort_frees_everything_within_a_second(rig: Rig) -> None:
    rig.set(step_seconds=0.002)

    async def main() -> None:
        async with rig.engine() as engine:
            streams = [await engine.add_request(f"r{i}", prompt_of(i, 2, 3), ENDLESS) for i in range(8)]
            await until(lambda: rig.log.num_first_tokens == 8)
            assert engine.num_unfinished_tokens == 24
            for stream in streams[:4]:
                stream.abort()
            outputs = [await collect(stream) for stream in streams[:4]]
            assert all(output.completions[0].finish_reason == "abort" for output in outputs)
            assert (engine.num_unfinished, engine.num_unfinished_tokens) == (4, 12)
            for stream in streams[4:]:
                stream.abort()
                stream.abort()
            engine.abort("never heard of")
            await is_clean(engine)  # the last one, too, after which no step follows
            assert [r.finish_reasons for r in rig.log.records.values()] == [["abort"]] * 8

    run(main())


def test_an_id_can_be_used_again_at_once(rig: Rig) -> None:
    """What the core still says of the one before belongs to nobody."""
    rig.set(step_seconds=0.001)

    async def main() -> None:
        async with rig.engine() as engine:
            rng = random.Random(0)
            for count in range(40):
                stream = await engine.add_request("a", random_prompt(rng), ENDLESS)
                tokens = rig.log.num_output_tokens
                await until(lambda tokens=tokens: rig.log.num_output_tokens > tokens)
                await asyncio.sleep(rng.random() * 0.003)
                stream.abort()
                rig.log.records.clear()
                prompt, params = random_prompt(rng), params_of(count, 5)
                stream = await engine.add_request("a", prompt, params)
                assert (await collect(stream)).content == expected(engine, prompt, params).content
                rig.log.records.clear()
            ended = stream
            stream = await engine.add_request("a", PROMPT, params_of(1))
            ended.abort()  # means the one before
            assert (await collect(stream)).content == expected(engine, PROMPT, params_of(1)).content

    run(main())


def test_an_id_in_use_is_refused(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            stream = await engine.add_request("a", PROMPT, params_of(1, 100, n=2))
            for name in ("a", "a/1"):
                with pytest.raises(ParameterError, match=r"request_id: .* in use"):
                    await engine.add_request(name, PROMPT, ENDLESS)
            await collect(stream, 2)
            await engine.add_request("b/0", PROMPT, ENDLESS)
            with pytest.raises(ParameterError, match=r"request_id: .* in use"):
                await engine.add_request("b", PROMPT, params_of(1, 100, n=2))

    run(main())


def test_what_cannot_run_is_refused_with_the_numbers(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            with pytest.raises(ParameterError, match=r"510.* 6 .*512.* at most 506") as error:
                await engine.add_request("a", PROMPT, params_of(1, 510))
            assert error.value.parameter == "max_tokens"
            with pytest.raises(ParameterError, match="600 tokens") as error:
                await engine.add_request("a", prompt_of(*[3] * 600), params_of(1, 1))
            assert error.value.parameter == "prompt"
            with pytest.raises(ParameterError, match="priority"):
                await engine.add_request("a", PROMPT, ENDLESS, priority=1)
            assert engine.num_unfinished == engine.num_unfinished_tokens == 0

    run(main())


@pytest.mark.parametrize("what", ["priority", "request_id", "cache_salt"])
def test_what_cannot_travel_leaves_nothing_behind(rig: Rig, what: str) -> None:
    async def main() -> None:
        async with rig.engine({"scheduling_policy": "priority"}) as engine:
            salt = "\ud800" if what == "cache_salt" else None
            with pytest.raises(ValueError, match=r"integer|surrogate|range"):
                await engine.add_request(
                    "\ud800" if what == "request_id" else "a",
                    prompt_of(1, 2, salt=salt),
                    ENDLESS,
                    priority=2**70 if what == "priority" else 0,
                )
            assert engine.num_unfinished == engine.num_unfinished_tokens == 0
            prompt, params = prompt_of(1, 2), params_of(3)
            assert (await collect(await engine.add_request("a", prompt, params))).content == expected(
                engine, prompt, params
            ).content

    run(main())


def test_too_many_requests_are_refused_until_there_is_room(rig: Rig) -> None:
    rig.set(step_seconds=0.002)

    async def main() -> None:
        async with rig.engine(max_queued_requests=4, max_queued_tokens=100) as engine:
            streams = [await engine.add_request(f"r{i}", PROMPT, ENDLESS) for i in range(4)]
            with pytest.raises(EngineOverloaded, match="4 completions wait or run") as error:
                await engine.add_request("more", PROMPT, ENDLESS)
            assert 1 <= error.value.retry_after <= 60
            streams[0].abort()
            with pytest.raises(EngineOverloaded, match="3 completions wait or run"):
                await engine.add_request("two", PROMPT, params_of(1, n=2))
            streams[0] = await engine.add_request("more", PROMPT, params_of(1))
            with pytest.raises(EngineOverloaded):
                await engine.add_request("much", PROMPT, ENDLESS)
            await collect(streams[0])
            with pytest.raises(EngineOverloaded, match="18 prompt tokens"):
                await engine.add_request("long", prompt_of(*[3] * 90), ENDLESS)
            await engine.add_request("short", prompt_of(*[3] * 80), ENDLESS)
            for name in ("r1", "r2", "r3", "short"):
                engine.abort(name)
            # One that is longer than the limit is taken if it is alone.
            assert (
                len(
                    (await collect(await engine.add_request("l", prompt_of(*[3] * 200), params_of(1))))
                    .completions[0]
                    .token_ids
                )
                == 20
            )

    run(main())


def test_a_deadline_ends_a_request_and_no_other(rig: Rig) -> None:
    rig.set(step_seconds=0.002)

    async def main() -> None:
        async with rig.engine() as engine:
            late = await engine.add_request("late", PROMPT, ENDLESS, timeout=0.2)
            in_time = await engine.add_request("in time", PROMPT, params_of(1), timeout=30)
            start = time.monotonic()
            output = Output([Gathered()])
            with pytest.raises(RequestFailed, match=r"timeout: .* within 0.2 s") as failure:
                await output.take_all(late)
            assert failure.value.kind == "deadline"
            assert time.monotonic() - start < 1
            got = output.completions[0].token_ids
            assert 0 < len(got) < 400
            assert got == expected(engine, PROMPT, ENDLESS).completions[0].token_ids[: len(got)]
            assert (await collect(in_time)).content == expected(engine, PROMPT, params_of(1)).content
            assert rig.log.records["late"].finish_reasons == ["error"]
            await is_clean(engine)

    run(main())


def test_a_slow_reader_gets_fewer_and_larger_deltas(rig: Rig) -> None:
    rig.set(step_seconds=0.003)  # or a busy machine's quick reader finds all of them there, too

    async def main() -> None:
        async with rig.engine() as engine:
            params = params_of(2, 300)
            slow = await engine.add_request("slow", PROMPT, params)
            quick = await engine.add_request("quick", PROMPT, params)
            outputs = await asyncio.gather(collect(slow, pause=0.1), collect(quick))
            assert outputs[0].content == outputs[1].content == expected(engine, PROMPT, params).content
            assert outputs[0].num_deltas < outputs[1].num_deltas / 2

    run(main())


def test_stop_lets_finish_what_can_and_fails_the_rest(rig: Rig) -> None:
    rig.set(step_seconds=0.005)

    async def main() -> None:
        async with rig.engine() as engine:
            short = await engine.add_request("short", PROMPT, params_of(1, 30))
            long = await engine.add_request("long", PROMPT, ENDLESS)
            stopping = asyncio.create_task(engine.stop(0.7))
            await asyncio.sleep(0)
            assert (await engine.health()).status == "stopping"
            with pytest.raises(EngineUnavailable, match="stops"):
                await engine.add_request("more", PROMPT, ENDLESS)
            assert (await collect(short)).content == expected(engine, PROMPT, params_of(1, 30)).content
            with pytest.raises(RequestFailed, match=r"0.7 s were not enough") as failure:
                await collect(long)
            assert failure.value.kind == "shutdown"
            await stopping
            assert engine.pid is None
            rig.check_clean()

    run(main())


def test_stop_returns_as_soon_as_all_is_done(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            stream = await engine.add_request("a", PROMPT, params_of(1))
            start = time.monotonic()
            await engine.stop(30)
            assert time.monotonic() - start < 5
            assert (await collect(stream)).completions[0].finish_reason == "length"

    run(main())


def test_a_crash_while_draining_is_survived(rig: Rig) -> None:
    rig.set(step_seconds=0.002)

    async def main() -> None:
        async with rig.engine() as engine:
            params = params_of(1, 150)
            stream = await engine.add_request("a", PROMPT, params)
            await until(lambda: rig.log.num_output_tokens > 10)
            stopping = asyncio.create_task(engine.stop(20))
            kill(engine)
            assert (await collect(stream)).content == expected(engine, PROMPT, params).content
            assert rig.log.crashes == [1]
            await stopping

    run(main())


def test_nothing_is_left_open(rig: Rig) -> None:
    def num_files() -> int:
        return psutil.Process().num_fds()

    async def once() -> None:
        async with rig.engine() as engine:
            for _ in range(2):
                await collect(await engine.add_request("a", PROMPT, params_of(1)))
                rig.log.records.clear()
                starts = rig.log.num_ready
                kill(engine)
                await until(lambda starts=starts: rig.log.num_ready > starts)

    async def main() -> None:
        await once()
        await asyncio.sleep(0.5)  # ZeroMQ closes sockets in a thread of its own, milliseconds later
        before = num_files()
        for _ in range(2):
            await once()
        await until(lambda: num_files() <= before, timeout=1.0, what="no more open files than before")

    run(main())


def test_idle_costs_nothing(rig: Rig) -> None:
    async def main() -> None:
        async with rig.engine() as engine:
            await collect(await engine.add_request("a", PROMPT, params_of(1)))
            processes = [psutil.Process(), psutil.Process(engine.pid)]
            before = [sum(process.cpu_times()[:2]) for process in processes]
            await asyncio.sleep(1.5)
            for process, start in zip(processes, before, strict=True):
                assert sum(process.cpu_times()[:2]) - start <= 0.05

    run(main())


def test_an_engine_that_never_started_can_be_stopped(rig: Rig) -> None:
    async def main() -> None:
        engine = AsyncEngine(EngineConfig(model=str(DEFAULT_MODEL)))
        assert (await engine.health()).status == "starting"
        await engine.stop(0)
        rig.check_clean()

    run(main())
