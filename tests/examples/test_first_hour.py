"""The newcomer's hour: the line that it changes is there, and changing it changes who is served first."""

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from lightvllm import learn
from lightvllm.engine import scheduler as as_it_is
from lightvllm.engine.request import Request
from lightvllm.engine.step import StepOutput
from lightvllm.sampling_params import SamplingParams

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8")
SOURCE = ROOT / "lightvllm" / "engine" / "scheduler.py"


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The scheduler's module with the page's change made."""
    [diff] = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
    removed, added = re.fullmatch(r"-(.*\n)\+(.*\n)", diff).groups()  # type: ignore[union-attr]
    source = SOURCE.read_text(encoding="utf-8")
    assert source.count(removed) == 1, "the page changes a line that is not there"
    path = tmp_path / "changed_scheduler.py"
    path.write_text(source.replace(removed, added), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("changed_scheduler", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "changed_scheduler", module)
    spec.loader.exec_module(module)
    return module


def finishing_order(module: ModuleType, output_lens: Sequence[int], num_places: int) -> list[int]:
    """Of requests that come at once, each with a prompt of 8 tokens."""
    scheduler = module.Scheduler(module.SchedulerConfig(num_blocks=64, max_model_len=128, max_num_seqs=num_places))
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


def test_the_shortest_goes_first(changed: ModuleType) -> None:
    output_lens = [40, 10, 30, 20, 50]
    assert finishing_order(as_it_is, output_lens, num_places=1) == [0, 1, 2, 3, 4]
    assert finishing_order(changed, output_lens, num_places=1) == [1, 3, 2, 0, 4]


def test_the_picture_changes(changed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page says that one sees: the mean goes down, the longest wait up."""
    before = learn.batching().continuous
    monkeypatch.setattr("lightvllm.learn.replay.Scheduler", changed.Scheduler)
    after = learn.batching().continuous
    assert [request.end for request in after.requests] != [request.end for request in before.requests]
    assert after.mean_latency < before.mean_latency
    assert after.mean_time_to_first_token < before.mean_time_to_first_token
