"""The server's end: in good order, in time, and with nothing left."""

import asyncio
import signal
import time
from collections.abc import Callable

import httpx2
import pytest

from tests.chaos.server import Answer, Client, Server, client_of, completion, is_alive, wait_for

Start = Callable[..., Server]


def test_sigterm_lets_streams_finish_and_takes_nothing_new(start_server: Start) -> None:
    server = start_server()
    server.wait_until_ready()
    requests = [completion(index, max_tokens=100, stream=index % 4 > 0) for index in range(8)]

    async def main() -> None:
        async with client_of(server) as client:
            undisturbed = await client.ask_all(requests)
            running = asyncio.create_task(client.ask_all(requests))
            await client.wait_for_tokens(20)
            server.terminate()
            await asyncio.sleep(0.2)
            assert not running.done()
            late = await client.ask(completion(1))
            assert late.status == 503
            assert late.error is not None
            assert "stops" in late.error["message"]
            assert (await client.http.get("/health")).status_code == 503
            for answer, wanted in zip(await running, undisturbed, strict=True):
                assert (answer.status, answer.error, answer.is_done) == (200, None, wanted.is_done)
                assert answer.content == wanted.content

    asyncio.run(main())
    assert server.wait(10) == 0


def test_what_does_not_finish_in_time_gets_an_error(start_server: Start) -> None:
    server = start_server("--shutdown-timeout", "1")
    server.wait_until_ready()

    async def main() -> None:
        async with client_of(server) as client:
            requests = [completion(index, max_tokens=1900, n=4, stream=index > 0) for index in range(4)]
            running = asyncio.create_task(client.ask_all(requests))
            await client.wait_for_tokens(20)
            # Somebody who watches the engine does not hold up the end.
            watching = asyncio.create_task(client.http.get("/debug/engine"))
            await asyncio.sleep(0.3)
            server.terminate()
            start = time.monotonic()
            answers = await running
            assert 0.5 < time.monotonic() - start < 6
            check_failed(answers)
            await asyncio.wait([watching], timeout=5)
            assert watching.done()
            assert watching.exception() is None

    asyncio.run(main())
    assert server.wait(10) == 0


def check_failed(answers: list[Answer]) -> None:
    assert [answer.status for answer in answers] == [503, 200, 200, 200]
    for answer in answers:
        assert answer.error is not None
        assert "1 s were not enough" in answer.error["message"]
        assert all(choice.finish_reason is None for choice in answer.choices.values())


def test_a_second_signal_ends_at_once(start_server: Start) -> None:
    server = start_server()
    server.wait_until_ready()

    async def main() -> None:
        async with client_of(server) as client:
            running = asyncio.create_task(client.ask_all([completion(0, max_tokens=1900, n=8)]))
            await client.wait_for_tokens(20)
            server.terminate()
            wait_for(lambda: "stopping" in server.log, 5, "the first signal's effect")
            start = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            assert server.wait(5) == 128 + signal.SIGINT
            assert time.monotonic() - start < 3
            with pytest.raises(httpx2.HTTPError):
                await running

    asyncio.run(main())


def test_a_signal_amid_the_start(start_server: Start) -> None:
    server = start_server()
    wait_for(server.engine, 20, "the engine's process")
    server.terminate()
    assert server.wait(10) == 0
    assert "Traceback" not in server.log


def test_a_crash_amid_the_end(start_server: Start) -> None:
    server = start_server()
    server.wait_until_ready()
    requests = [completion(index, max_tokens=80) for index in range(4)]

    async def main() -> None:
        async with client_of(server) as client:
            undisturbed = await client.ask_all(requests)
            running = asyncio.create_task(client.ask_all(requests))
            await client.wait_for_tokens(20)
            server.terminate()
            server.signal_engine(signal.SIGKILL)
            for answer, wanted in zip(await running, undisturbed, strict=True):
                assert answer.content == wanted.content

    asyncio.run(main())
    assert server.wait(10) == 0


def test_the_engine_dies_with_a_front_that_is_killed(start_server: Start) -> None:
    server = start_server()
    server.wait_until_ready()
    engine = server.engine()
    assert engine is not None

    async def main() -> None:
        client = Client(server)
        running = asyncio.create_task(client.ask(completion(0, max_tokens=1900)))
        await client.wait_for_tokens(10)
        server.process.kill()
        with pytest.raises(httpx2.HTTPError):
            await running
        await client.http.aclose()

    asyncio.run(main())
    server.process.wait(5)
    wait_for(lambda: not is_alive(engine), 5, "the engine's end")
    assert list(server.temporary.glob("lightvllm-*")) == []
