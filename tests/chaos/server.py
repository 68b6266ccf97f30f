"""A server of the default model in processes of its own, and what it gives to those who ask."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

REPOSITORY = Path(__file__).parents[2]
# A KV cache of 8192 tokens, so that blocks run short, and short steps, so that the engine timeout can be short.
FLAGS = ("--port", "0", "--max-model-len", "2048", "--kv-cache-memory-bytes", str(32 * 2**20))
FLAGS += ("--max-num-batched-tokens", "256")
START_TIMEOUT = 60.0


class Server:
    """`lightvllm serve`, started."""

    def __init__(self, folder: Path, *flags: str) -> None:
        folder.mkdir(exist_ok=True)
        self.log_file = folder / "log"
        self.temporary = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # short, as a socket's path must be
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lightvllm.cli", "serve", *FLAGS, *flags],
                env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary)},
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
            )
        self._front = psutil.Process(self.process.pid)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def url(self) -> str:
        match = re.search(r"serving \S+ at (http://\S+)", self.log)
        assert match is not None, self.log
        return match[1]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_until_ready(self) -> None:
        wait_for(lambda: "serving" in self.log or self.process.poll() is not None, START_TIMEOUT, "a start")
        assert self.process.poll() is None, self.log

    def engine(self) -> psutil.Process | None:
        """The engine's process; None while there is none."""
        for child in self._front.children():
            with contextlib.suppress(psutil.Error):
                if "lightvllm.engine.core_process" in child.cmdline():
                    return child
        return None

    def signal_engine(self, number: int) -> int:
        """Send the engine's process a signal; returns its pid."""
        engine = self.engine()
        assert engine is not None
        engine.send_signal(number)
        return engine.pid

    def metrics(self) -> dict[str, float]:
        """The sums of the metrics by name."""
        values: dict[str, float] = {}
        page = httpx2.get(f"{self.url}/metrics", timeout=20).text
        for name, value in re.findall(r"^([\w:]+)(?:{.*})? (\S+)$", page, re.MULTILINE):
            values[name] = values.get(name, 0.0) + float(value)
        return values

    def is_clean(self) -> bool:
        """Whether no request holds anything."""
        metrics = self.metrics()
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        return not any(metrics[name] for name in names)

    def check_clean(self, timeout: float = 2.0) -> None:
        wait_for(self.is_clean, timeout, "an empty engine")

    def memory(self) -> tuple[float, float]:
        """Of the front and of the engine, in MB."""
        engine = self.engine()
        assert engine is not None
        return self._front.memory_info().rss / 1e6, engine.memory_info().rss / 1e6

    def num_files(self) -> int:
        """The front's open files and connections."""
        return self._front.num_fds()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float) -> int:
        """The exit code; nothing may be left by then."""
        engine = self.engine() if self.process.poll() is None else None
        code = self.process.wait(timeout)
        if engine is not None:
            wait_for(lambda: not is_alive(engine), 3, "the engine's end")
        assert list(self.temporary.glob("lightvllm-*")) == []
        return code

    def end(self) -> None:
        """However it is."""
        if self.process.poll() is None:
            engine = self.engine()
            self.process.kill()
            self.process.wait()
            if engine is not None and is_alive(engine):
                engine.kill()
        shutil.rmtree(self.temporary, ignore_errors=True)


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_for(condition: Callable[[], Any], timeout: float, what: str) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"waited {timeout:g} s for {what}"
        time.sleep(0.02)


@dataclass
class Choice:
    """One of an answer's choices."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class Answer:
    """What came of a request.

    Attributes:
        error: OpenAI's error object, from an answer or amid a stream.
        is_done: a stream ended with [DONE].
    """

    status: int = 0
    choices: dict[int, Choice] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    is_done: bool = False

    def take(self, body: dict[str, Any]) -> None:
        self.error = body.get("error", self.error)
        for part in body.get("choices", []):
            choice = self.choices.setdefault(part["index"], Choice())
            assert choice.finish_reason is None, "a choice goes on after its end"
            delta = part.get("delta") or part.get("message") or {}
            choice.text += part.get("text") or delta.get("content") or ""
            choice.token_ids += part.get("token_ids") or []
            choice.logprobs += (part.get("logprobs") or {}).get("token_logprobs") or []
            choice.finish_reason = part["finish_reason"]

    @property
    def content(self) -> dict[int, tuple[Any, ...]]:
        """What must be the same whatever happened meanwhile."""
        return {index: (choice.text, choice.token_ids, choice.finish_reason) for index, choice in self.choices.items()}

    @property
    def num_tokens(self) -> int:
        return sum(len(choice.token_ids) for choice in self.choices.values())


class Client:
    """Sends requests, many at a time.

    Attributes:
        num_tokens: that all answers together have so far.
    """

    def __init__(self, server: Server) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self.http = httpx2.AsyncClient(base_url=server.url, timeout=60, limits=limits)
        self.num_tokens = 0

    async def ask(self, request: dict[str, Any]) -> Answer:
        """Send a request to the endpoint its fields belong to."""
        path = "/v1/chat/completions" if "messages" in request else "/v1/completions"
        answer = Answer()
        async with self.http.stream("POST", path, json=request) as response:
            answer.status = response.status_code
            if not request.get("stream") or response.status_code != 200:
                answer.take(json.loads(await response.aread()))
                return answer
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    answer.is_done = True
                elif line.startswith("data: "):
                    before = answer.num_tokens
                    answer.take(json.loads(line.removeprefix("data: ")))
                    self.num_tokens += answer.num_tokens - before
        return answer

    async def ask_all(self, requests: list[dict[str, Any]]) -> list[Answer]:
        return list(await asyncio.gather(*map(self.ask, requests)))

    async def wait_for_tokens(self, count: int, timeout: float = 60.0) -> None:
        """Until so many more have come."""
        goal, end = self.num_tokens + count, time.monotonic() + timeout
        while self.num_tokens < goal:
            assert time.monotonic() < end, f"{goal - self.num_tokens} tokens did not come within {timeout:g} s"
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[Client]:
    client = Client(server)
    async with client.http:
        yield client


def completion(index: int, **fields: Any) -> dict[str, Any]:
    """A request whose answer is a function of the index; of 64 tokens, as a stream."""
    return {
        "prompt": f"CREATE TABLE t{index} (id INTEGER, name TEXT); question {index * 7919 % 100}:",
        "max_tokens": 64,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        "temperature": 0.9 * (index % 2),
        "seed": index,
        **fields,
    }


def mixed_requests(count: int, max_tokens: int) -> list[dict[str, Any]]:
    """Of all kinds: greedy and drawn, several choices, log-probabilities, stop strings, forms, chats, not streamed."""
    kinds: list[dict[str, Any]] = [
        {},
        {},
        {"n": 3, "max_tokens": max_tokens // 2},
        {"logprobs": 2},
        {"stream": False},
        {"stop": ["zq;"], "presence_penalty": 0.5, "repetition_penalty": 1.1},
        {"structured_outputs": {"regex": "([a-z]{3} ){60,90}"}},
        {"min_tokens": 20, "ignore_eos": False, "logit_bias": {"40": 3, "41": -100}},
    ]
    requests = [
        completion(index, **{"max_tokens": max_tokens, **kinds[index % len(kinds)]}) for index in range(count - 4)
    ]
    for index in range(4):
        chat = completion(index, max_tokens=max_tokens)
        prompt = chat.pop("prompt")
        requests.append({**chat, "messages": [{"role": "user", "content": prompt}]})
    return requests
