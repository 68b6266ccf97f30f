"""What the tests share: tiny checkpoints, made once a session, and engines that are checked when they have run."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # the tests of the engine run where there is no torch
    from lightvllm import LLM
    from tests.e2e.checkpoint import Checkpoint

# Before anything imports torch: for models this small a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell's background jobs ignore interrupts, and so would the programs that tests start here and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the end-to-end tests run their engines: cpu, cuda, cuda:N")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """Where the end-to-end tests run their engines."""
    return pytestconfig.getoption("--device")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """`checkpoint("qwen3")`: the folder of a case of `tests.models.checkpoints`, and transformers' model of it."""
    from tests.e2e.checkpoint import Checkpoint

    made: dict[str, Checkpoint] = {}

    def get(case: str) -> Checkpoint:
        if case not in made:
            made[case] = Checkpoint.make(tmp_path_factory.mktemp(case), case)
        return made[case]

    return get


@pytest.fixture(scope="session")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A Qwen3 of random weights with a byte-level tokenizer, a chat template and a generation config."""
    from tests.e2e.checkpoint import make_text_checkpoint

    return make_text_checkpoint(tmp_path_factory.mktemp("text"))


@pytest.fixture
def make_llm(device: str) -> Iterator[Callable[..., LLM]]:
    """`make_llm(path, **options)`: an `LLM` that after the test must hold no request and own no cache block."""
    from lightvllm import LLM

    gc.freeze()  # closing an engine collects garbage, and need not look at all that torch and transformers brought
    llms: list[LLM] = []

    def make(path: Path, **options: Any) -> LLM:
        llm = LLM(path, **{"device": device, **options})
        llms.append(llm)
        return llm

    yield make
    for llm in llms:
        llm.engine.core.check_integrity()
        figures = llm.get_metrics()
        assert (figures.num_running, figures.num_waiting, figures.num_used_blocks) == (0, 0, 0)
        assert not llm.engine.has_unfinished_requests()
        llm.close()
    gc.unfreeze()
