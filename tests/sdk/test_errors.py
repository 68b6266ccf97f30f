"""Refusals as OpenAI's client raises them."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.sdk.wire import Server, question

USER: Any = [{"role": "user", "content": "Hi"}]


def test_a_bad_value(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="default_model", messages=question(), temperature=3)
    error = caught.value
    assert (error.status_code, error.param, error.type) == (400, "temperature", "invalid_request_error")
    assert "temperature" in error.message
    assert "3" in error.message
    assert "2" in error.message  # what would be right


def test_an_unknown_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="default_model", messages=USER, extra_body={"temprature": 1})
    assert caught.value.param == "temprature"


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=USER)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    assert "gpt-4" in caught.value.message
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="x")


def test_keys(assistant: Server) -> None:
    for key in ("wrong", "secre", "secret2"):
        with assistant.client(api_key=key) as client, pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.status_code == 401
        assert "secret" not in caught.value.message.replace("secret2", "")
    with assistant.client(api_key="spare") as client:
        assert client.models.list().data


def test_errors_of_a_stream_come_before_it(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="default_model", messages=question(), stream=True, top_p=0)
    assert caught.value.param == "top_p"


def test_what_the_server_does_not_have(client: openai.OpenAI) -> None:
    for call in (
        lambda: client.embeddings.create(model="default_model", input="x"),
        lambda: client.responses.create(model="default_model", input="x"),
        lambda: client.files.list(),
        lambda: client.moderations.create(input="x"),
    ):
        with pytest.raises(openai.NotFoundError):
            call()


def test_a_deadline_of_the_request(client: openai.OpenAI) -> None:
    extra = {"timeout": 0.05, "ignore_eos": True}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="default_model", messages=question(), max_tokens=900, extra_body=extra)
    assert caught.value.status_code == 504


def test_a_timeout_of_the_client_frees_the_request(server: Server) -> None:
    with server.client(timeout=0.2) as impatient, pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(
            model="default_model", messages=question(), max_tokens=900, extra_body={"ignore_eos": True}
        )
    assert server.seconds_until_idle() < 1


def test_a_closed_stream_frees_its_request(server: Server, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="default_model", messages=question(), max_tokens=900, stream=True, n=3, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert server.figure("vllm:num_requests_running") >= 1
    stream.close()
    assert server.seconds_until_idle() < 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_cancelled_tasks_free_their_requests(server: Server, stream: bool) -> None:
    aborted = server.figure("vllm:request_success_total", finished_reason="abort")

    async def ask(client: openai.AsyncOpenAI) -> None:
        answer: Any = await client.chat.completions.create(
            model="default_model", messages=question(), max_tokens=900, stream=stream, extra_body={"ignore_eos": True}
        )
        if stream:
            async for _ in answer:
                pass

    async def cancel() -> float:
        async with server.async_client() as client:
            tasks = [asyncio.create_task(ask(client)) for _ in range(4)]
            while await asyncio.to_thread(server.figure, "vllm:num_requests_running") < 4:
                await asyncio.sleep(0.01)
            start = time.monotonic()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(server.seconds_until_idle)
            return time.monotonic() - start

    assert asyncio.run(cancel()) < 1
    assert server.figure("vllm:request_success_total", finished_reason="abort") == aborted + 4


@pytest.fixture
def running(assistant: Server) -> Iterator[list[Any]]:
    """Streams, as many as the assistant takes at once."""
    with assistant.client() as client:
        streams = [
            client.chat.completions.create(
                model="assistant", messages=USER, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
            )
            for _ in range(8)
        ]
        for stream in streams:
            next(iter(stream))
        yield streams
        for stream in streams:
            stream.close()
    assistant.seconds_until_idle()


def test_a_full_queue(assistant: Server, running: list[Any]) -> None:
    with assistant.client() as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="assistant", messages=USER, max_tokens=1)
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_the_client_tries_again_until_there_is_room(assistant: Server, running: list[Any]) -> None:
    soon = threading.Timer(0.2, running[0].close)
    soon.start()
    with assistant.client(max_retries=2) as client:
        assert client.chat.completions.create(model="assistant", messages=USER, max_tokens=1).usage
    soon.join()
