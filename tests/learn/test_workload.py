"""Workloads: what is drawn, what is read, and what is refused."""

import math
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lightvllm.learn import PlannedRequest, Workload


def test_the_same_seed_draws_the_same_requests() -> None:
    load = Workload.random(num_requests=50, rate=3, seed=1)
    assert load == Workload.random(num_requests=50, rate=3, seed=1)
    assert load.prompts() == Workload.random(num_requests=50, rate=3, seed=1).prompts()
    assert load != Workload.random(num_requests=50, rate=3, seed=2)


def test_lengths_are_in_their_ranges() -> None:
    load = Workload.random(num_requests=500, input_len=(3, 5), output_len=7)
    assert {request.input_len for request in load.requests} == {3, 4, 5}
    assert {request.output_len for request in load.requests} == {7}
    assert load.num_output_tokens == 3500
    assert load.max_model_len == 12


def test_arrivals_follow_the_rate() -> None:
    times = [request.arrival for request in Workload.random(num_requests=4000, rate=20).requests]
    assert times[0] == 0
    gaps = [after - before for before, after in pairwise(times)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 20, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.1)  # as of an exponential distribution
    for rate in (None, math.inf):
        assert {request.arrival for request in Workload.random(rate=rate).requests} == {0}


def test_prompts_are_as_long_as_planned_and_begin_alike_where_they_share_a_prefix() -> None:
    plans = [
        PlannedRequest(input_len=5, output_len=1, prefix="a", prefix_len=20),
        PlannedRequest(input_len=6, output_len=1, prefix="a", prefix_len=10),
        PlannedRequest(input_len=7, output_len=1, prefix="b", prefix_len=20),
        PlannedRequest(input_len=25, output_len=1),
    ]
    prompts = Workload(tuple(plans)).prompts()
    assert [len(prompt) for prompt in prompts] == [25, 16, 27, 25]
    assert prompts[0][:10] == prompts[1][:10]
    assert prompts[0][10:16] != prompts[1][10:]
    assert len({prompt[0] for prompt in (prompts[0], prompts[2], prompts[3])}) == 3


def test_blocks_hold_all_but_the_last_token() -> None:
    """Which is never computed."""
    load = Workload((PlannedRequest(input_len=4, output_len=5), PlannedRequest(input_len=4, output_len=6)))
    assert [request.num_blocks(4) for request in load.requests] == [2, 3]
    assert load.num_blocks(4) == 5
    load.check_fits(3, 4)
    with pytest.raises(ValueError, match="num_blocks: 2 is out of range, expected at least 3"):
        load.check_fits(2, 4)


def test_a_file_is_read_in_the_order_of_arrival(tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    path.write_text(
        '{"arrival": 12.5, "input_len": 8, "output_len": 2}\n\n'
        '{"arrival": 10, "input_len": 9, "output_len": 3, "prefix": "chat", "prefix_len": 100}\n'
    )
    first, second = Workload.from_file(path).requests
    assert first == PlannedRequest(arrival=0, input_len=9, output_len=3, prefix="chat", prefix_len=100)
    assert first.num_prompt_tokens == 109
    assert second == PlannedRequest(arrival=2.5, input_len=8, output_len=2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input_len": 8}', "missing required field `output_len`"),
        ('{"input_len": 8, "output_len": 0}', "output_len: 0 is out of range, expected at least 1"),
        ('{"input_len": 0, "output_len": 1}', "input_len: 0 is out of range"),
        ('{"input_len": "8", "output_len": 1}', "Expected `int`, got `str` - at `$.input_len`"),
        ('{"input_len": 8, "output_len": 1, "arrival": -1}', "arrival: -1.0 is out of range"),
        ('{"input_len": 8, "output_len": 1, "outputlen": 1}', "unknown field `outputlen`"),
        ('{"input_len": 8, "output_len": 1, "prefix": "a"}', "prefix is 'a' and prefix_len 0: one needs the other"),
        ('{"input_len": 8, "output_len": 1, "prefix_len": 4}', "prefix is None and prefix_len 4"),
        ('{"input_len": 8, "output_len": 1', "Input data was truncated"),
        ("[8, 1]", "Expected `object`, got `array`"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    path.write_text('{"input_len": 8, "output_len": 2}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=r"load\.jsonl', line 3: ") as error:
        Workload.from_file(path)
    assert message in str(error.value)


def test_a_file_must_be_there_and_say_something(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*none\.jsonl"):
        Workload.from_file(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl' is empty"):
        Workload.from_file(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_requests": 0}, "num_requests: 0 is out of range"),
        ({"input_len": 0}, "input_len: 0 is out of range"),
        ({"output_len": (5, 4)}, r"output_len: \(5, 4\) is out of range"),
        ({"rate": 0}, "rate: 0 is out of range"),
        ({"rate": math.nan}, "rate: nan is out of range"),
        ({"shared_prefix_len": -1}, "shared_prefix_len: -1 is out of range"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Workload.random(**options)


def test_a_workload_has_a_request() -> None:
    with pytest.raises(ValueError, match="requests is empty"):
        Workload(())
