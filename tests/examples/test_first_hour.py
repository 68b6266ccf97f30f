"""The newcomer's hour: the line that it changes is there, and changing it changes who is served first."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lightvllm import learn
from lightvllm.engine.request import Request
from lightvllm.engine.scheduler import Scheduler
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.step import StepOutput
from lightvllm.sampling_params import SamplingParams

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8")


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the page's change when it is called, until the end of the test."""
    [(path, diff)] = re.findall(r"`(lightvllm/[\w/]+\.py)`[^`]*?```diff\n(.*?)```", PAGE, re.DOTALL)
    removed, added = re.fullmatch(r"-(.*\n)\+(.*\n)", diff).groups()  # type: ignore[union-attr]
    source = (ROOT / path).read_text(encoding="utf-8")
    assert source.count(removed) == 1, "the page changes a line that is not there"

    def make() -> None:
        names: dict[str, Any] = {"__name__": "changed"}
        exec(compile(source.replace(removed, added), path, "exec"), names)
        monkeypatch.setattr("lightvllm.engine.scheduler.POLICIES", names["POLICIES"])

    return make


def finishing_order(output_lens: Sequence[int]) -> list[int]:
    """Of requests that come at once, one running at a time, each with a prompt of 8 tokens."""
    scheduler = Scheduler(SchedulerConfig(num_blocks=64, max_model_len=128, max_num_seqs=1))
    for index, output_len in enumerate(output_lens):
        params = SamplingParams(max_tokens=output_len)
        scheduler.add(Request(str(index), [index] * 8, params, seed=0, arrival_time=0.0))
    finished = []
    while scheduler.requests:
        step = scheduler.schedule()
        outputs = scheduler.update(StepOutput(token_ids=[[99]] * len(step.request_ids)))
        scheduler.check_integrity()
        finished += [int(output.request_id) for output in outputs if output.finish_reason]
    return finished


def test_the_shortest_goes_first(change: Any) -> None:
    output_lens = [40, 10, 30, 20, 50]
    assert finishing_order(output_lens) == [0, 1, 2, 3, 4]
    change()
    assert finishing_order(output_lens) == [1, 3, 2, 0, 4]


def test_the_figures_of_the_page(change: Any) -> None:
    """Simulated, so the same everywhere."""
    tables = []
    for make in (lambda: None, change):
        make()
        tables.append(learn.batching().table())
    for label in ("time to first token, mean", "latency, mean", "latency, 99th percentile", "places idle"):
        [told] = re.findall(rf"^\| {label} \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
        # Of each table the first column: continuous batching.
        simulated = [re.findall(rf"^{label} +([\d.,]+(?: ms|%))", table, re.MULTILINE) for table in tables]
        assert [[cell] for cell in told] == simulated
