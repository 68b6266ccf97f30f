"""The client, `chat --url` and `bench serve` against `lightvllm serve` with the default model."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightvllm.bench.load.server_process import running_server
from lightvllm.cli.main import main
from lightvllm.client import APIError, Client
from lightvllm.config import DEFAULT_MODEL

OPTIONS = {"model": str(DEFAULT_MODEL), "max_model_len": 512, "kv_cache_memory_bytes": 64 << 20, "api_key": ["key"]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(OPTIONS) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, "key") as client:
        client.wait_until_ready()
        yield client


def test_client(client: Client) -> None:
    [model] = client.models()
    assert model.max_model_len == 512
    whole = client.chat("How many?", max_tokens=8, temperature=0, ignore_eos=True)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    assert whole.choices[0].finish_reason == "length"
    with client.stream_chat("How many?", max_tokens=8, temperature=0, ignore_eos=True) as stream:
        deltas = list(stream)
    assert "".join(delta.text for delta in deltas) == whole.text != ""
    assert deltas[-1].finish_reason == "length"
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 8
    tokens = client.tokenize("SELECT city FROM customers", add_special_tokens=False).tokens
    assert client.detokenize(tokens) == "SELECT city FROM customers"
    assert client.complete(tokens, max_tokens=1).choices[0].finish_reason in ("length", "stop")


def test_refusals_are_typed(client: Client, url: str) -> None:
    with pytest.raises(APIError) as caught:
        client.chat("Hello", top_p=3)
    assert (caught.value.status, caught.value.param) == (400, "top_p")
    with Client(url) as stranger, pytest.raises(APIError) as caught:
        stranger.models()
    assert caught.value.status == 401
    with Client(url) as stranger:
        assert stranger.health()  # which no key guards


def test_a_stream_that_is_left_is_given_up(client: Client) -> None:
    with client.stream_complete("SELECT", max_tokens=400, ignore_eos=True) as stream:
        assert next(iter(stream)).index == 0
    assert client.complete("SELECT", max_tokens=1).usage is not None


def test_chat(client: Client, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("How many?\n/reset\nHow many?\n"))
    assert main(["chat", "--url", url, "--api-key", "key", "--temperature", "0", "--max-tokens", "12"]) == 0
    answer = client.chat("How many?", temperature=0, max_tokens=12).text
    assert capsys.readouterr().out == f"{answer}\n" * 2


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/chat/completions"])
def test_bench_serve(url: str, endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--num-prompts", "12", "--random-input-len", "20", "--random-output-len", "6", "--max-concurrency", "8"]
    flags = ["--base-url", url, "--api-key", "key", "--endpoint", endpoint, "--ignore-eos", "--temperature", "0"]
    assert main(["bench", "serve", *flags, *sizes, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["completed"], record["failed"], record["num_without_usage"]) == (12, 0, 0)
    assert record["total_output_tokens"] == 72
    if endpoint == "/v1/completions":
        assert record["total_input_tokens"] == 12 * 20
    else:  # the chat template's are counted, too
        assert record["total_input_tokens"] > 12 * 20
    assert 0 < record["mean_ttft_ms"] < record["mean_e2el_ms"]
    assert record["max_concurrent_requests"] <= 8


@pytest.mark.slow
def test_bench_overhead(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--concurrency", "1,3", "--input-len", "12", "--output-len", "5", "--repeats", "1"]
    memory = ["--max-model-len", "64", "--kv-cache-memory-bytes", str(16 << 20)]
    assert main(["bench", "overhead", *sizes, *memory, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [result["concurrency"] for result in record["results"]] == [1, 3]
    for result in record["results"]:
        for side in ("engine", "server"):
            assert 0 < result[side]["time_to_first_token"] < 60
            assert 0 < result[side]["time_per_output_token"] < 60


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"the server did not start: .*no folder"),
        running_server({"model": str(tmp_path / "x")}),
    ):
        pass
