"""`lightvllm bench serve` against a small server: what is sent, what is reported."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightvllm.cli.main import main
from lightvllm.config import DEFAULT_MODEL
from tests.client.fake_server import Answer, FakeServer, error, running

SMALL = ["--num-prompts", "6", "--random-input-len", "9", "--random-output-len", "4"]
TOKENIZER = ["--tokenizer", str(DEFAULT_MODEL)]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running() as server:
        yield server


def bench(server: FakeServer, *flags: str) -> int:
    return main(["bench", "serve", "--base-url", server.url, *TOKENIZER, *flags])


def report(server: FakeServer, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert bench(server, *SMALL, *flags, "--json") == 0
    return json.loads(capsys.readouterr().out)


def generating(server: FakeServer) -> list[dict[str, Any]]:
    return [request.body for request in server.requests if request.path != "/v1/models"]


def test_completions(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--ignore-eos",
        "--temperature",
        "0",
        "--extra-body",
        '{"min_p": 0.5}',
        "--header",
        "x-a=b",
        "--api-key",
        "k",
    ]
    record = report(server, capsys, *flags, "--goodput", "ttft:100000", "e2el:100000")
    assert (record["benchmark"], record["model_id"], record["request_rate"]) == ("serve", "fake-model", "inf")
    assert (record["completed"], record["failed"]) == (6, 0)
    assert (record["total_input_tokens"], record["total_output_tokens"]) == (6 * 7, 6 * 4)
    assert record["request_goodput"] == pytest.approx(6 / record["duration"])
    assert {
        f"{which}_{name}_ms" for which in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")
    } <= record.keys()
    bodies = generating(server)
    assert len(bodies) == 6
    for body in bodies:
        assert len(body["prompt"]) == 9
        assert (body["max_tokens"], body["ignore_eos"], body["temperature"], body["min_p"]) == (4, True, 0.0, 0.5)
    assert all(request.headers["authorization"] == "Bearer k" for request in server.requests)
    assert server.requests[-1].headers["x-a"] == "b"


def test_what_is_not_given_is_not_sent(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    report(server, capsys)
    assert generating(server)[0].keys() == {"model", "prompt", "max_tokens", "stream", "stream_options"}


def test_chat(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.token_seconds = 0.01
    record = report(server, capsys, "--endpoint", "/v1/chat/completions", "--max-concurrency", "2", "--model", "named")
    assert record["max_concurrent_requests"] == server.peak_open == 2
    assert record["max_concurrency"] == 2
    [message] = generating(server)[0]["messages"]
    assert message["role"] == "user"
    assert isinstance(message["content"], str)
    assert generating(server)[0]["max_completion_tokens"] == 4
    assert {body["model"] for body in generating(server)} == {"named"}
    assert "/v1/models" not in [request.path for request in server.requests]


def test_prefixes_and_warmups(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prefix-repetition-num-prefixes", "2", "--prefix-repetition-prefix-len", "8"]
    sizes += ["--prefix-repetition-suffix-len", "3", "--prefix-repetition-output-len", "2"]
    record = report(server, capsys, "--dataset-name", "prefix_repetition", *sizes, "--num-warmups", "2")
    assert record["completed"] == 6
    prompts = [body["prompt"] for body in generating(server)]
    assert len(prompts) == 8
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 2
    assert len({tuple(prompt) for prompt in prompts}) == 8


def test_sharegpt(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [
        {"from": "human", "value": "How many customers are there?"},
        {"from": "gpt", "value": "There are 42 of them."},
    ]
    (tmp_path / "s.json").write_text(json.dumps([{"conversations": turns}]))
    flags = ["--dataset-name", "sharegpt", "--dataset-path", str(tmp_path / "s.json"), "--sharegpt-output-len", "3"]
    assert report(server, capsys, *flags)["total_output_tokens"] == 18
    assert generating(server)[0]["prompt"] == "How many customers are there?"


def test_a_rate_for_a_time(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    record = report(server, capsys, "--request-rate", "5", "--burstiness", "inf", "--duration", "0.95")
    assert record["completed"] == 5
    assert (record["request_rate"], record["burstiness"]) == (5, "inf")


def test_the_table_and_the_files(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--percentile-metrics", "ttft,client_queue_time", "--metric-percentiles", "50,99.9"]
    saved = ["--save-result", "--save-detailed", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
    assert bench(server, *SMALL, *chosen, *saved) == 0
    text = capsys.readouterr().out
    record = json.loads((tmp_path / "r.json").read_text())
    for label in ("Completed requests", "Output tokens a second", "Time to First Token (ms)", "p99.9", "Held back"):
        assert label in text
    assert f"{record['p99.9_ttft_ms']:.2f}" in text
    assert "mean_itl_ms" not in record
    assert record["generated_texts"] == ["w0 w1 w2 w3 "] * 6
    assert [len(itls) for itls in record["itls"]] == [3] * 6
    assert bench(server, *SMALL, "--save-result", "--result-dir", str(tmp_path), "--request-rate", "500") == 0
    [made] = [path for path in tmp_path.iterdir() if path.name != "r.json"]
    assert made.name.startswith("lightvllm-500qps-fake-model-")
    assert "itls" not in json.loads(made.read_text())


def test_failures(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script += [Answer(503, chunks=[error("full")]), Answer(503, chunks=[error("full")])]
    assert bench(server, *SMALL) == 1
    assert "2 failed: full (status 503)" in capsys.readouterr().out
    server.script.append(Answer(400, chunks=[error("no")]))
    assert bench(server, *SMALL, "--num-warmups", "1") == 1
    assert "error: the warm-up failed: no (status 400)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-prompts", "0"], "num_prompts: 0 is out of range"),
        (["--max-concurrency", "0"], "max_concurrency: 0 is out of range"),
        (["--request-rate", "0"], "request_rate: 0.0 is out of range"),
        (["--burstiness", "-1"], "burstiness: -1.0 is out of range"),
        (["--duration", "0"], "duration: 0.0 is out of range"),
        (["--duration", "5"], "duration: needs --request-rate or --max-concurrency"),
        (["--percentile-metrics", "ttft,speed"], "percentile_metrics: 'speed' is unknown"),
        (["--metric-percentiles", "99,x"], "metric_percentiles: '99,x' is no list"),
        (["--metric-percentiles", "101"], "metric_percentiles: '101' is no list"),
        (["--goodput", "itl:5"], "goodput: 'itl:5' is no limit such as ttft:200"),
        (["--goodput", "ttft"], "goodput: 'ttft' is no limit such as ttft:200"),
        (["--dataset-name", "sharegpt"], "dataset_path: sharegpt needs it"),
        (["--dataset-path", "x"], "dataset_path: only with"),
        (["--result-dir", "x"], "only with --save-result"),
        (["--header", "x"], "header: 'x' is not NAME=VALUE"),
        (["--tokenizer", "/no/such"], "tokenizer"),
        (["--base-url", "localhost:1"], "url: 'localhost:1' is no address"),
        (["--base-url", "http://127.0.0.1:9", "--tokenizer", ""], "base_url: cannot reach http://127.0.0.1:9"),
    ],
)
def test_mistakes(server: FakeServer, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(server, *SMALL, *flags) == 1
    assert message in capsys.readouterr().err
    assert generating(server) == []


def test_a_model_that_is_not_here_needs_a_tokenizer(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--base-url", server.url]) == 1
    assert "error: tokenizer: the model 'fake-model' is no folder here" in capsys.readouterr().err


def test_the_client_loads_no_torch(server: FakeServer) -> None:
    code = f"""
import sys
from lightvllm.cli.main import main
main(["bench", "serve", "--base-url", {server.url!r}, *{TOKENIZER + SMALL!r}])
print("loaded:", *sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "Completed requests" in result.stdout
    assert not {"torch", "transformers", "httpx"} & set(result.stdout.rpartition("loaded:")[2].split())
