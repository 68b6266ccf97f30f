"""Continuous against static batching: by hand, never slower, and drawn as the real scheduler decides."""

import pytest

from lightvllm import learn
from lightvllm.engine.request import Request
from lightvllm.engine.scheduler import Scheduler
from lightvllm.learn import PlannedRequest, StepCost, Workload

SECOND = StepCost(fixed=1, per_token=0, per_context_token=0)
THREE = Workload(tuple(PlannedRequest(input_len=4, output_len=length) for length in (1, 3, 1)))


def test_idle_places_by_hand() -> None:
    result = learn.batching(THREE, max_num_seqs=2, cost=SECOND)
    # Two places: static runs 1 and 3 steps, then 1 more; continuous gives the first place on after one step.
    assert (result.static.seconds, result.continuous.seconds) == (4, 3)
    assert result.static.idle_share == pytest.approx(3 / 8)
    assert result.continuous.idle_share == pytest.approx(1 / 6)
    assert list(result.static.spans(0)) == [("prefill", 0, 1), ("idle", 1, 3)]
    assert list(result.static.spans(2)) == [("waiting", 0, 3), ("prefill", 3, 4)]
    assert list(result.continuous.spans(0)) == [("prefill", 0, 1)]
    assert list(result.continuous.spans(2)) == [("waiting", 0, 1), ("prefill", 1, 2)]
    assert result.continuous.output_tokens_per_s == pytest.approx(5 / 3)


@pytest.mark.parametrize("seed", range(8))
def test_continuous_batching_is_never_slower_with_the_same_places(seed: int) -> None:
    load = Workload.random(num_requests=12, input_len=(1, 60), output_len=(1, 40), seed=seed)
    for max_num_seqs in (1, 2, 5, 12):
        result = learn.batching(load, max_num_seqs=max_num_seqs)
        assert result.continuous.seconds <= result.static.seconds * (1 + 1e-9)
        assert result.continuous.idle_share <= result.static.idle_share + 1e-9
    one = learn.batching(load, max_num_seqs=1)
    assert one.continuous.seconds == pytest.approx(one.static.seconds)  # a batch of one has nothing to wait for


def test_the_text_shows_both_timelines() -> None:
    lines = learn.batching(THREE, max_num_seqs=2, cost=SECOND).table().splitlines()
    assert lines[:11] == [
        "3 requests, 12 prompt tokens, 5 output tokens; 2 at a time",
        "",
        "continuous batching",
        "  0 " + "#" * 18,
        "  1 " + "#" * 18 + "=" * 36,
        "  2 " + "." * 18 + "#" * 18,
        "",
        "static batching",
        "  0 " + "#" * 18 + "x" * 36,
        "  1 " + "#" * 18 + "=" * 36,
        "  2 " + "." * 54 + "#" * 18,
    ]
    assert [line.split() for line in lines if line.startswith("whole run")] == [
        ["whole", "run", "3,000.0", "ms", "4,000.0", "ms"]
    ]


def test_the_text_stays_on_a_few_screens() -> None:
    lines = learn.batching(Workload.random(num_requests=50, output_len=2)).table().splitlines()
    assert [line for line in lines if line.endswith(" more")] == ["    and 10 more"] * 2
    assert len(lines) < 100


def test_the_picture_has_a_row_for_each_request_and_a_bar_for_each_span() -> None:
    result = learn.batching(THREE, max_num_seqs=2, cost=SECOND)
    panels = result.plot().axes
    assert [panel.get_title(loc="left").split()[0] for panel in panels] == ["continuous", "static"]
    for panel, strategy in zip(panels, (result.continuous, result.static), strict=True):
        assert len(panel.collections) == sum(len(list(strategy.spans(index))) for index in range(3))


def test_a_policy_changed_in_the_scheduler_changes_the_timelines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is the real scheduler's alone: shortest prompt first, by what is one line there."""
    load = Workload.random(num_requests=10)
    by_arrival = learn.batching(load, max_num_seqs=1)
    add = Scheduler.add

    def add_shortest_first(scheduler: Scheduler, request: Request) -> None:
        request.arrival_time = request.num_prompt_tokens
        add(scheduler, request)

    monkeypatch.setattr(Scheduler, "add", add_shortest_first)
    by_length = learn.batching(load, max_num_seqs=1)
    lengths = [request.num_prompt_tokens for request in load.requests]
    ends = [request.end for request in by_length.continuous.requests]
    assert sorted(range(10), key=ends.__getitem__) == sorted(range(10), key=lengths.__getitem__)
    assert by_length.table() != by_arrival.table()
    assert by_length.static.requests == by_arrival.static.requests  # of one place there is nothing to choose


def test_what_the_scheduler_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="max_num_seqs is 0, but must be at least 1"):
        learn.batching(max_num_seqs=0)
