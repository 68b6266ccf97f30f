"""The engine dies or hangs under 32 streams, and no client notices anything but a pause."""

import asyncio
import random
import signal

import httpx2
import pytest

from tests.chaos.server import Answer, Client, Server, client_of, completion, mixed_requests, wait_for

NUM_STREAMS = 32


def check_same(answers: list[Answer], undisturbed: list[Answer]) -> None:
    assert [answer.status for answer in answers] == [200] * len(answers)
    assert [answer.error for answer in answers] == [None] * len(answers)
    assert all(answer.is_done == other.is_done for answer, other in zip(answers, undisturbed, strict=True))
    different = [
        index
        for index, (answer, other) in enumerate(zip(answers, undisturbed, strict=True))
        if answer.content != other.content
    ]
    assert different == []
    for answer, other in zip(answers, undisturbed, strict=True):
        for index, choice in answer.choices.items():
            assert choice.logprobs == pytest.approx(other.choices[index].logprobs, abs=0.1)


async def kill_some(server: Server, client: Client, rng: random.Random, running: asyncio.Task, most: int) -> int:  # type: ignore[type-arg]
    """Kill the engine again and again while requests run, but never before all had a token since the last time."""
    count = 0
    while count < most:
        progress = asyncio.create_task(client.wait_for_tokens(2 * NUM_STREAMS))
        await asyncio.wait([progress, running], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            progress.cancel()
            break
        await asyncio.sleep(rng.random() * 0.3)
        engine = server.engine()
        if engine is not None:
            engine.send_signal(signal.SIGKILL)
            count += 1
    return count


def test_kill_9_again_and_again(server: Server, num_kills: int) -> None:
    rng = random.Random(0)
    requests = mixed_requests(NUM_STREAMS, 120)
    restarts = server.metrics()["lightvllm:engine_restarts_total"]
    recovered = server.metrics()["lightvllm:recovered_requests_total"]

    async def main() -> None:
        async with client_of(server) as client:
            undisturbed = await client.ask_all(requests)
            assert sum(answer.num_tokens for answer in undisturbed) > 2400
            assert not any(answer.error for answer in undisturbed), [answer.error for answer in undisturbed]
            count = 0
            while count < num_kills:
                running = asyncio.create_task(client.ask_all(requests))
                count += await kill_some(server, client, rng, running, min(5, num_kills - count))
                check_same(await running, undisturbed)

    asyncio.run(main())
    server.check_clean()
    metrics = server.metrics()
    assert metrics["lightvllm:engine_restarts_total"] - restarts == num_kills
    assert metrics["lightvllm:recovered_requests_total"] - recovered > 8 * num_kills
    assert metrics["lightvllm:failed_requests_total"] == 0
    assert metrics["lightvllm:engine_up"] == 1


def test_a_stopped_engine(server: Server) -> None:
    """Stopped for a moment it loses nothing; stopped for longer than the engine timeout it is replaced."""
    requests = [completion(index, max_tokens=80) for index in range(8)]
    restarts = server.metrics()["lightvllm:engine_restarts_total"]

    async def main() -> None:
        async with client_of(server) as client:
            undisturbed = await client.ask_all(requests)
            running = asyncio.create_task(client.ask_all(requests))
            await client.wait_for_tokens(24)
            pid = server.signal_engine(signal.SIGSTOP)
            await asyncio.sleep(1.0)
            assert not running.done()
            server.signal_engine(signal.SIGCONT)
            check_same(await running, undisturbed)
            engine = server.engine()
            assert engine is not None
            assert engine.pid == pid

            running = asyncio.create_task(client.ask_all(requests))
            await client.wait_for_tokens(24)
            server.signal_engine(signal.SIGSTOP)
            check_same(await running, undisturbed)
            engine = server.engine()
            assert engine is not None
            assert engine.pid != pid

    asyncio.run(main())
    server.check_clean()
    assert server.metrics()["lightvllm:engine_restarts_total"] == restarts + 1


def test_health_tells_of_a_restart(server: Server) -> None:
    def status() -> int:
        return httpx2.get(f"{server.url}/health").status_code

    assert status() == 200
    server.signal_engine(signal.SIGKILL)
    wait_for(lambda: status() == 503, 5, "the news")
    wait_for(lambda: status() == 200, 30, "another engine")
    server.check_clean()
