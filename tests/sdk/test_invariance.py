"""What must not change an answer: company, a cached prefix, streaming, repetition; and what is counted how often."""

import asyncio
from typing import Any

from tests.sdk.wire import Server, question

TABLES = ["books", "pupils", "rivers", "cheeses", "trains", "songs", "walks", "lamps"]


def requests() -> list[dict[str, Any]]:
    """32 different questions, of prompts and outputs of different lengths."""
    return [
        {
            "messages": question(
                f"Which {table} have the name {'x' * length}?", f"{table}(id integer, name text, year integer)"
            ),
            "temperature": 0,
            "max_tokens": 4 + length,
            "logprobs": True,
            "model": "default_model",
            "extra_body": {"return_token_ids": True, "ignore_eos": True},
        }
        for table in TABLES
        for length in (1, 4, 8, 12)
    ]


def test_32_greedy_streams_together_are_as_alone(server: Server) -> None:
    async def stream(client: Any, request: dict[str, Any]) -> list[tuple[str, float]]:
        chunks = [chunk async for chunk in await client.chat.completions.create(**request, stream=True)]
        choices = [choice for chunk in chunks for choice in chunk.choices]
        content = "".join(choice.delta.content or "" for choice in choices)
        tokens = [token for choice in choices for token in getattr(choice, "token_ids", None) or []]
        logprobs = [token.logprob for choice in choices if choice.logprobs for token in choice.logprobs.content]
        return [content, tokens, logprobs]

    async def together() -> list[Any]:
        async with server.async_client() as client:
            return await asyncio.gather(*(stream(client, request) for request in requests()))

    alone = []
    with server.client() as client:
        for request in requests():
            [choice] = client.chat.completions.create(**request).choices
            logprobs = [token.logprob for token in choice.logprobs.content]
            alone.append([choice.message.content, choice.token_ids, logprobs])
    assert asyncio.run(together()) == alone


def test_logprobs_are_the_same_with_and_without_a_cached_prefix(server: Server) -> None:
    messages = question("Which books appeared after 1990? " * 6)
    body = {"messages": messages, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    answers = [server.chat(**body, cache_salt=salt).json() for salt in ("one", "one", "another")]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached[1] > 32
    assert cached[1] > cached[2]
    assert answers[0]["choices"] == answers[1]["choices"] == answers[2]["choices"]


def test_prompt_logprobs_are_the_same_with_a_cached_prefix(server: Server) -> None:
    body = {"prompt": "SELECT title FROM books WHERE year > 1990 " * 4, "max_tokens": 4, "temperature": 0}
    fresh = server.complete(**body, prompt_logprobs=2, cache_salt="prompt").json()["choices"]
    assert server.complete(**body, cache_salt="prompt").status_code == 200
    assert server.complete(**body, prompt_logprobs=2, cache_salt="prompt").json()["choices"] == fresh


def test_seeded_sampling_is_the_same_in_company(server: Server) -> None:
    requests_ = [{"messages": question(), "temperature": 1.5, "seed": seed, "max_tokens": 16} for seed in range(6)]
    alone = [server.chat(**request).json()["choices"] for request in requests_]

    async def together() -> list[str]:
        async with server.async_client() as client:
            create = client.chat.completions.create
            answers = await asyncio.gather(*(create(model="default_model", **request) for request in requests_))
            return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(together()) == [choices[0]["message"]["content"] for choices in alone]
    assert len({choices[0]["message"]["content"] for choices in alone}) > 1


def test_prompt_tokens_are_counted_once_for_several_choices(server: Server) -> None:
    names = ["vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_prompt_tokens_sum"]
    before = [server.figure(name) for name in names]
    one = server.chat(n=1, temperature=1, max_tokens=4).json()["usage"]
    several = server.chat(n=5, temperature=1, max_tokens=4, ignore_eos=True).json()["usage"]
    assert several["prompt_tokens"] == one["prompt_tokens"]
    assert several["completion_tokens"] == 5 * 4
    prompt, generated, prompts = (server.figure(name) - was for name, was in zip(names, before, strict=True))
    assert prompt == one["prompt_tokens"] * 2
    assert prompts == one["prompt_tokens"] * 2
    assert generated == one["completion_tokens"] + several["completion_tokens"]


def test_prompt_tokens_of_several_prompts_are_added(server: Server) -> None:
    before = server.figure("vllm:prompt_tokens_total")
    prompts = ["SELECT", "SELECT title FROM books"]
    usage = server.complete(prompt=prompts, n=3, max_tokens=2, temperature=1).json()["usage"]
    counts = [server.http.post("/tokenize", json={"prompt": prompt}).json()["count"] for prompt in prompts]
    assert usage["prompt_tokens"] == sum(counts)
    assert server.figure("vllm:prompt_tokens_total") - before == sum(counts)


def test_vllms_metrics_are_there(server: Server) -> None:
    server.chat(max_tokens=4)
    gauges = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "gpu_cache_usage_perc"]
    counters = [
        "prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "prompt_tokens", "prompt_tokens_cached",
        "generation_tokens", "request_success", "gpu_prefix_cache_hits", "gpu_prefix_cache_queries",
    ]  # fmt: skip
    histograms = [
        "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds",
        "request_prefill_time_seconds", "request_decode_time_seconds", "request_prompt_tokens",
        "request_generation_tokens", "request_max_num_generation_tokens", "request_params_n",
        "request_params_max_tokens", "iteration_tokens_total", "time_per_output_token_seconds",
    ]  # fmt: skip
    labels = {"model_name": "default_model", "engine": "0"}
    for name in [*gauges, *(f"{name}_total" for name in counters)]:
        assert server.figure(f"vllm:{name}", **labels) >= 0
    for name in histograms:
        assert server.figure(f"vllm:{name}_count", **labels) > 0, name
    for name in ("cache_config_info",):
        assert server.figure(f"vllm:{name}") == 1
    assert server.figure("vllm:num_requests_running") == 0
