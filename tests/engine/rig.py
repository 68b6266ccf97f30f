"""An `AsyncEngine` over `tests.engine.fake_core`, what its requests must give, and what it may not leave behind."""

import asyncio
import gc
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from lightvllm.config import DEFAULT_MODEL, EngineConfig
from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.engine.completions import RequestState
from lightvllm.engine.messages import EngineReady, StepReport
from lightvllm.engine.observer import EngineObserver, RequestRecord
from lightvllm.engine.process import CoreProcess
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.engine.request import CoreOutput
from lightvllm.engine.streams import RequestDelta, RequestStream
from lightvllm.outputs import Logprob
from lightvllm.sampling_params import SamplingParams
from lightvllm.seeds import child_seed
from tests.engine.fake_core import FOLDER_VARIABLE, Options
from tests.engine.fakes import logprobs_at, next_token

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Gathered:
    """A completion, put together from deltas."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class Output:
    """A request's completions, and its prompt's log-probabilities."""

    completions: list[Gathered]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_deltas: int = 0

    def take(self, delta: RequestDelta) -> None:
        self.num_deltas += 1
        if delta.prompt_logprobs is not None:
            assert self.prompt_logprobs is None, "the prompt's log-probabilities came twice"
            self.prompt_logprobs = delta.prompt_logprobs
        for part in delta.outputs:
            whole = self.completions[part.index]
            assert whole.finish_reason is None, "a completion goes on after its end"
            whole.text += part.text
            whole.token_ids += part.token_ids
            whole.logprobs += part.logprobs or []
            whole.finish_reason, whole.stop_reason = part.finish_reason, part.stop_reason

    async def take_all(self, stream: RequestStream, pause: float = 0.0) -> None:
        async for delta in stream:
            self.take(delta)
            await asyncio.sleep(pause)

    @property
    def content(self) -> tuple[Any, ...]:
        """All that must not depend on what happened meanwhile."""
        return self.completions, self.prompt_logprobs


@dataclass
class Log(EngineObserver):
    """What an observer was told."""

    num_ready: int = 0
    crashes: list[int] = field(default_factory=list)
    records: dict[str, RequestRecord] = field(default_factory=dict)
    num_first_tokens: int = 0
    num_inter_tokens: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0

    def on_ready(self, ready: EngineReady) -> None:
        self.num_ready += 1

    def on_step(self, report: StepReport) -> None:
        self.num_prompt_tokens += report.num_prompt_tokens
        self.num_output_tokens += report.num_output_tokens

    def on_first_token(self, seconds: float) -> None:
        assert seconds >= 0
        self.num_first_tokens += 1

    def on_inter_token(self, seconds: float) -> None:
        assert seconds >= 0
        self.num_inter_tokens += 1

    def on_finish(self, record: RequestRecord) -> None:
        assert record.request_id not in self.records, f"{record.request_id} finished twice"
        self.records[record.request_id] = record

    def on_crash(self, num_recovered: int) -> None:
        self.crashes.append(num_recovered)


class Rig:
    """Makes engines and requests.

    Attributes:
        log: of the engine made last.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = Log()
        self.before = children()
        self.set()

    def set(self, **options: Any) -> None:
        """Options of the processes to be started."""
        Options(**options).write(self.folder)

    def start_times(self) -> list[float]:
        """When processes were started, by `time.time`."""
        return [float(line) for line in (self.folder / "starts").read_text().split()]

    @asynccontextmanager
    async def engine(self, config: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[AsyncEngine]:
        """A started engine, which then is stopped and must have left no process, file or task."""
        others = asyncio.all_tasks()
        self.log = Log()
        config = {"block_size": 4, "max_num_batched_tokens": 64, **(config or {})}
        engine = AsyncEngine(EngineConfig(model=str(DEFAULT_MODEL), **config), self.log, **options)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop(0)
            await asyncio.sleep(0)
        assert engine.num_unfinished == engine.num_unfinished_tokens == 0
        assert asyncio.all_tasks() <= others, asyncio.all_tasks() - others
        self.check_clean()

    def check_clean(self) -> None:
        """No process, no folder of a socket is left."""
        assert [child for child in children() if child not in self.before] == []
        assert list(Path(tempfile.gettempdir()).glob("lightvllm-*")) == []


def children() -> list[psutil.Process]:
    """Core processes of this process."""
    return [child for child in psutil.Process().children() if "core" in " ".join(child.cmdline())]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    folder = Path(tempfile.mkdtemp(prefix="rig-", dir="/tmp"))  # not pytest's: a socket's path must be short
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(CoreProcess, "MODULE", "tests.engine.fake_core")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    caplog.set_level("INFO", logger="lightvllm")
    rig = Rig(folder)
    yield rig
    for child in children():
        if child not in rig.before:  # of a test that failed
            child.kill()
    gc.collect()  # what asyncio has to complain of, it says when it is collected
    for record in caplog.get_records("call"):
        assert record.name != "asyncio", record.getMessage()
        assert "Violation" not in record.getMessage()
        assert "AssertionError" not in record.getMessage()
        assert "cannot take in" not in record.getMessage(), record.exc_info
    shutil.rmtree(folder)


def run(main: Coroutine[Any, Any, None], timeout: float = 40.0) -> None:
    """Run a test's coroutine, for so long at most."""
    asyncio.run(asyncio.wait_for(main, timeout))


def prompt_of(*token_ids: int, salt: str | None = None) -> TokenizedPrompt:
    return TokenizedPrompt(list(token_ids), None, salt)


def random_prompt(rng: random.Random, least: int = 1, most: int = 40) -> TokenizedPrompt:
    """Half of them begin alike, so that the prefix cache has its say."""
    head = list(range(10, 22)) if rng.random() < 0.5 else []
    return prompt_of(*head, *(rng.randrange(50) for _ in range(rng.randint(least, most))))


def expected(engine: AsyncEngine, prompt: TokenizedPrompt, params: SamplingParams) -> Output:
    """What an undisturbed engine gives: computed here, without one. The parameters have a seed."""
    assert params.seed is not None
    state = engine.frontend.open_request("expected", prompt, params)
    for completion in state.completions:
        _complete(state, completion.index, engine)
    output = Output([Gathered() for _ in state.completions])
    output.take(state.take_delta())
    return output


def _complete(state: RequestState, index: int, engine: AsyncEngine) -> None:
    params, prompt = state.params, state.prompt.token_ids
    assert params.seed is not None
    seed, completion = child_seed(params.seed, index), state.completions[index]
    stops = set(params.stop_token_ids or ()) | (set() if params.ignore_eos else set(state.eos_token_ids))
    limit = engine.max_model_len - len(prompt)
    if params.max_tokens is not None:
        limit = min(limit, params.max_tokens)
    while completion.finish_reason is None:
        token_ids = [*prompt, *completion.token_ids]
        token_id = next_token(token_ids, seed)
        output = CoreOutput("", [token_id])
        if params.logprobs is not None:
            output.logprobs = [logprobs_at(token_ids)]
        num_tokens = len(completion.token_ids) + 1
        if token_id in stops and num_tokens >= params.min_tokens:
            output.finish_reason = "stop"
            output.stop_reason = None if token_id in state.eos_token_ids else token_id
        elif num_tokens == limit:
            output.finish_reason = "length"
        if index == 0 and params.prompt_logprobs is not None and num_tokens == 1:
            output.prompt_logprobs = [logprobs_at(prompt[:count]) for count in range(1, len(prompt))]
        state.append(index, output)


async def collect(stream: RequestStream, n: int = 1, pause: float = 0.0) -> Output:
    """All that a stream gives."""
    output = Output([Gathered() for _ in range(n)])
    await output.take_all(stream, pause)
    return output


async def until(condition: Any, timeout: float = 10.0, what: str = "the condition") -> float:
    """Wait until a callable is true; returns the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout, f"{what} did not come true in {timeout} s"
        await asyncio.sleep(0.005)
    return time.monotonic() - start


def kill(engine: AsyncEngine, number: int = signal.SIGKILL) -> None:
    """Send the core's process a signal."""
    assert engine.pid is not None
    os.kill(engine.pid, number)
