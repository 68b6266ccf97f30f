"""A server seen from outside: requests as they are on the wire, and OpenAI's clients."""

import json
import time
from typing import Any

import httpx2
import openai
from prometheus_client.parser import text_string_to_metric_families

TIMEOUT = 60.0
SCHEMA = "books(id integer, title text, year integer)"


def question(text: str = "How many books are there?", schema: str = SCHEMA) -> list[Any]:
    """Messages that the default model was trained to answer."""
    return [{"role": "system", "content": schema}, {"role": "user", "content": text}]


class Server:
    """A server's address, and the ways to speak with it."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url
        self.api_key = api_key
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self.http = httpx2.Client(base_url=url, headers=headers, timeout=TIMEOUT)
        self.model = self.http.get("/v1/models").json()["data"][0]["id"]

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def client(self, **options: Any) -> openai.OpenAI:
        """OpenAI's client, which here tries nothing twice: a failure is to be seen."""
        return openai.OpenAI(**self._client_options(options))

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        """The same for asyncio."""
        return openai.AsyncOpenAI(**self._client_options(options))

    def _client_options(self, options: dict[str, Any]) -> dict[str, Any]:
        defaults = {"base_url": f"{self.url}/v1", "api_key": self.api_key or "none", "max_retries": 0}
        return defaults | {"timeout": TIMEOUT} | options

    def complete(self, **body: Any) -> httpx2.Response:
        """POST /v1/completions"""
        return self.http.post("/v1/completions", json=body)

    def chat(self, **body: Any) -> httpx2.Response:
        """POST /v1/chat/completions; without messages: a question for the default model."""
        return self.http.post("/v1/chat/completions", json={"messages": question()} | body)

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, with nothing around them."""
        body = {"prompt": text, "add_special_tokens": False}
        return self.http.post("/tokenize", json=body).raise_for_status().json()["tokens"]

    def detokenize(self, tokens: list[int]) -> str:
        """The text of tokens."""
        return self.http.post("/detokenize", json={"tokens": tokens}).raise_for_status().json()["prompt"]

    def figure(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        assert samples, f"no metric {name}"
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def seconds_until_idle(self, limit: float = 10.0) -> float:
        """Seconds until no request runs or waits."""
        start = time.monotonic()
        while self.figure("vllm:num_requests_running") + self.figure("vllm:num_requests_waiting"):
            assert time.monotonic() - start < limit, f"requests still run after {limit} s"
            time.sleep(0.02)
        return time.monotonic() - start


def events(body: str) -> list[Any]:
    """The chunks of a stream of server-sent events, which must end with [DONE] and hold nothing else."""
    blocks = body.removesuffix("\n\n").split("\n\n")
    assert blocks.pop() == "data: [DONE]"
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    """The error object of an answer, which must look as OpenAI's."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert len(error["message"]) > 10
    assert isinstance(error["type"], str)
    return error
