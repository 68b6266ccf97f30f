"""The replay: simulated time by hand, and that everyone gets what he came for."""

import itertools
import math

import pytest

from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.learn import PlannedRequest, StepCost, Workload
from lightvllm.learn.replay import Span, percentile, replay, run_steps

SECOND = StepCost(fixed=1, per_token=0, per_context_token=0)


def config_for(load: Workload, **options: int | bool) -> SchedulerConfig:
    defaults = {"num_blocks": load.num_blocks(4), "max_model_len": load.max_model_len, "block_size": 4}
    return SchedulerConfig(**{**defaults, **options})  # type: ignore[arg-type]


def plan(*requests: tuple[float, int, int]) -> Workload:
    """Of (arrival, input_len, output_len)."""
    return Workload(tuple(PlannedRequest(arrival=a, input_len=i, output_len=o) for a, i, o in requests))


def test_a_timeline_by_hand() -> None:
    load = plan((0, 6, 3), (0.5, 9, 2), (10, 3, 1))
    served = replay(load, config_for(load, max_num_batched_tokens=6), SECOND)
    # Budget 6: the prompt of "0"; then its decode beside 5 tokens of "1"; then its last one beside the other 4.
    steps = [
        (step.start, [(share.request_id, share.num_tokens) for share in step.trace.batch]) for step in served.steps
    ]
    assert steps == [
        (0, [("0", 6)]),
        (1, [("0", 1), ("1", 5)]),
        (2, [("0", 1), ("1", 4)]),
        (3, [("1", 1)]),
        (10, [("2", 3)]),
    ]
    first, second, third = served.requests
    assert first.spans == (Span("prefill", 0, 1), Span("decode", 1, 3))
    assert first.token_times == (1, 2, 3)
    assert second.spans == (Span("waiting", 0.5, 1), Span("prefill", 1, 3), Span("decode", 3, 4))
    assert (second.time_to_first_token, second.latency) == (2.5, 3.5)
    assert third.spans == (Span("prefill", 10, 11),)
    assert served.seconds == 11
    assert served.output_tokens_per_s == pytest.approx(6 / 11)
    assert served.mean_latency == pytest.approx((3 + 3.5 + 1) / 3)
    assert served.latency_p99 == 3.5


def test_a_step_costs_what_it_computes_and_looks_back_at() -> None:
    load = plan((0, 6, 2))
    cost = StepCost(fixed=100, per_token=10, per_context_token=1)
    prefill, decode = run_steps(load, config_for(load), cost)
    assert (prefill.start, prefill.end) == (0, 100 + 6 * 10 + 6)
    assert (decode.start, decode.end) == (prefill.end, prefill.end + 100 + 10 + 7)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("is_static", [False, True], ids=["continuous", "static"])
def test_every_request_gets_exactly_its_tokens_and_no_time_is_lost(seed: int, is_static: bool) -> None:
    load = Workload.random(
        num_requests=20,
        input_len=(1, 30),
        output_len=(1, 20),
        rate=(None, 30.0)[seed % 2],
        shared_prefix_len=9,
        seed=seed,
    )
    most = max(request.num_blocks(4) for request in load.requests)
    config = config_for(load, num_blocks=most + 3 * seed, max_num_seqs=1 + seed, max_num_batched_tokens=7 + 5 * seed)
    served = replay(load, config, StepCost(), is_static=is_static)
    for planned, life in zip(load.requests, served.requests, strict=True):
        assert len(life.token_times) == planned.output_len
        assert sorted(life.token_times) == list(life.token_times)
        assert life.spans[0].start == life.arrival == planned.arrival
        assert life.spans[-1].end == life.end
        assert all(before.end == after.start for before, after in itertools.pairwise(life.spans))
        assert all(before.kind != after.kind for before, after in itertools.pairwise(life.spans))
    assert all(before.end <= after.start for before, after in itertools.pairwise(served.steps))
    assert all(len(step.trace.batch) <= config.max_num_seqs for step in served.steps)
    assert all(step.num_used_blocks <= config.num_blocks for step in served.steps)
    assert served == replay(load, config, StepCost(), is_static=is_static)  # nothing depends on chance


def test_a_static_batch_lets_nobody_in_before_its_end() -> None:
    load = plan((0, 4, 1), (0, 4, 5), (1, 4, 2), (2, 4, 1))
    served = replay(load, config_for(load, max_num_seqs=2), SECOND, is_static=True)
    assert [life.token_times[0] for life in served.requests] == [1, 1, 6, 6]


def test_percentile_is_one_of_the_values() -> None:
    assert percentile([3, 1, 2], 99) == 3
    assert percentile(list(range(1, 201)), 99) == 198
    assert percentile([5], 50) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed": 0}, "fixed: 0 is out of range, expected more than 0"),
        ({"per_token": -1}, "per_token: -1 is out of range"),
        ({"per_context_token": math.nan}, "per_context_token: nan is out of range"),
    ],
)
def test_costs_that_mean_nothing_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepCost(**options)
