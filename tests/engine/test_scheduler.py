"""The scheduler's decisions, one step at a time."""

from collections.abc import Callable

import pytest

from lightvllm.engine.request import CoreOutput, Request
from lightvllm.engine.scheduler import Scheduler
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.step import StepInput, StepOutput, TokenLogprobs
from tests.engine.fakes import logprobs_at, make_request

pytestmark = pytest.mark.usefixtures("stopped_clock")


def make_scheduler(**kwargs: object) -> Scheduler:
    defaults = {"num_blocks": 100, "max_model_len": 100, "block_size": 4, "max_num_batched_tokens": 50}
    return Scheduler(SchedulerConfig(**{**defaults, **kwargs}))  # type: ignore[arg-type]


def results(scheduler: Scheduler, step: StepInput, token_id: int = 7) -> StepOutput:
    """One sampled token for each request that has all its tokens computed."""
    token_ids = []
    for request_id, num_tokens in zip(step.request_ids, step.num_scheduled_tokens, strict=True):
        request = scheduler.requests[request_id]
        is_complete = request.num_computed_tokens + num_tokens == len(request.token_ids)
        token_ids.append([token_id] if is_complete else [])
    return StepOutput(token_ids)


def run_step(scheduler: Scheduler, token_id: int = 7) -> tuple[StepInput, list[CoreOutput]]:
    step = scheduler.schedule()
    outputs = scheduler.update(results(scheduler, step, token_id))
    scheduler.check_integrity()
    return step, outputs


def scheduled(step: StepInput) -> dict[str, int]:
    return dict(zip(step.request_ids, step.num_scheduled_tokens, strict=True))


def tokens(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


def test_prompts_and_decodes_share_one_budget() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=10)
    scheduler.add(make_request("a", tokens(0, 6)))
    scheduler.add(make_request("b", tokens(100, 9)))
    scheduler.add(make_request("c", tokens(200, 2)))
    assert scheduled(run_step(scheduler)[0]) == {"a": 6, "b": 4}
    assert scheduled(run_step(scheduler)[0]) == {"a": 1, "b": 5, "c": 2}
    assert scheduled(run_step(scheduler)[0]) == {"a": 1, "b": 1, "c": 1}


def test_a_new_request_is_told_whole_and_then_only_its_new_blocks() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", tokens(0, 7), seed=5, stop_token_ids=[3], eos_token_ids=[2]))
    step, outputs = run_step(scheduler)
    (new,) = step.new_requests
    assert (new.request_id, new.token_ids, new.num_prompt_tokens) == ("a", tokens(0, 7), 7)
    assert (new.num_computed_tokens, new.block_ids, new.seed, new.stop_token_ids) == (0, [0, 1], 5, [2, 3])
    assert outputs == [CoreOutput("a", [7])]
    step, _ = run_step(scheduler)  # the 8th token still fits
    assert (step.new_requests, step.new_block_ids) == ([], {})
    step, _ = run_step(scheduler)
    assert (step.new_requests, step.new_block_ids) == ([], {"a": [2]})
    assert new.token_ids == tokens(0, 7)  # the message is no window into the engine
    assert new.block_ids == [0, 1]


def test_long_prompts_can_be_held_to_a_threshold() -> None:
    scheduler = make_scheduler(long_prefill_token_threshold=5)
    scheduler.add(make_request("a", tokens(0, 12)))
    scheduler.add(make_request("b", tokens(100, 3)))
    assert scheduled(run_step(scheduler)[0]) == {"a": 5, "b": 3}
    assert scheduled(run_step(scheduler)[0]) == {"a": 5, "b": 1}
    assert scheduled(run_step(scheduler)[0]) == {"a": 2, "b": 1}


def test_no_more_than_max_num_seqs_run() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for index in range(3):
        scheduler.add(make_request(f"r{index}", tokens(100 * index, 3), max_tokens=2))
    assert scheduled(run_step(scheduler)[0]) == {"r0": 3, "r1": 3}
    run_step(scheduler)
    assert scheduled(run_step(scheduler)[0]) == {"r2": 3}


def test_a_request_is_admitted_only_when_all_its_tokens_fit() -> None:
    scheduler = make_scheduler(num_blocks=4, max_num_batched_tokens=8)
    scheduler.add(make_request("a", tokens(0, 5), max_tokens=2))
    scheduler.add(make_request("b", tokens(100, 12), max_tokens=1))  # 3 blocks, though 3 tokens would fit the budget
    scheduler.add(make_request("c", tokens(200, 2)))
    assert scheduled(run_step(scheduler)[0]) == {"a": 5}  # and nobody passes b
    run_step(scheduler)
    assert scheduled(run_step(scheduler)[0]) == {"b": 8}
    assert scheduled(run_step(scheduler)[0]) == {"b": 4, "c": 2}


def test_who_is_first_after_one_that_did_not_fit_is_looked_at() -> None:
    scheduler = make_scheduler(num_blocks=6, policy="priority")
    scheduler.add(make_request("running", tokens(0, 8)))
    scheduler.add(make_request("too_long", tokens(100, 22), priority=1))
    scheduler.add(make_request("behind", tokens(200, 3), priority=1))
    run_step(scheduler)
    assert scheduled(run_step(scheduler)[0]) == {"running": 1}
    scheduler.add(make_request("urgent", tokens(300, 3), max_tokens=1))
    assert scheduled(run_step(scheduler)[0]) == {"running": 1, "urgent": 3}
    assert scheduled(run_step(scheduler)[0]) == {"running": 1}
    scheduler.abort(["too_long"])
    assert scheduled(run_step(scheduler)[0]) == {"running": 1, "behind": 3}


def test_the_newest_is_preempted_and_comes_back_with_all_its_tokens() -> None:
    scheduler = make_scheduler(num_blocks=4, enable_prefix_caching=False)
    scheduler.add(make_request("old", tokens(0, 7), max_tokens=6))
    scheduler.add(make_request("new", tokens(100, 7), max_tokens=6))
    run_step(scheduler)
    run_step(scheduler)
    step, _ = run_step(scheduler)  # each wants a third block
    assert scheduled(step) == {"old": 1}
    assert step.dropped_request_ids == ["new"]
    scheduler.add(make_request("late", tokens(200, 1)))
    steps = [run_step(scheduler)[0] for _ in range(4)]
    assert all("new" not in step.request_ids and "late" not in step.request_ids for step in steps[:3])
    assert scheduled(steps[3]) == {"new": 9, "late": 1}
    new = steps[3].new_requests[0]
    assert (new.token_ids, new.num_prompt_tokens, new.num_computed_tokens) == ([*tokens(100, 7), 7, 7], 7, 0)
    assert (scheduler.num_preemptions, scheduler.requests["new"].num_preemptions) == (1, 1)


def test_what_a_preempted_request_computed_is_found_again() -> None:
    scheduler = make_scheduler(num_blocks=4)
    scheduler.add(make_request("old", tokens(0, 7), max_tokens=3))
    scheduler.add(make_request("new", tokens(100, 7), max_tokens=6))
    for _ in range(3):
        run_step(scheduler)
    step, outputs = run_step(scheduler)
    assert step.new_requests[0].num_computed_tokens == 4  # its second block was taken, its first was not
    assert outputs[0].num_cached_tokens == 0  # that is about the first time it ran


def test_priority_orders_both_queues() -> None:
    scheduler = make_scheduler(policy="priority", num_blocks=4, max_num_batched_tokens=8)
    scheduler.add(make_request("low", tokens(0, 7), priority=5, max_tokens=10))
    run_step(scheduler)
    scheduler.add(make_request("mid", tokens(100, 3), priority=1, arrival_time=2.0))
    scheduler.add(make_request("high", tokens(200, 5), priority=-1, arrival_time=3.0, max_tokens=10))
    assert scheduled(run_step(scheduler)[0]) == {"low": 1, "high": 5}
    step, _ = run_step(scheduler)
    assert list(scheduled(step)) == ["high"]  # it goes first now, and `low` found no block
    assert step.dropped_request_ids == ["low"]


def test_fcfs_ignores_priority_but_not_arrival() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("second", [1], priority=-9, arrival_time=2.0))
    scheduler.add(make_request("first", [2], priority=9, arrival_time=1.0))
    scheduler.add(make_request("third", [3], arrival_time=2.0))
    assert scheduler.schedule().request_ids == ["first", "second", "third"]


def test_a_cached_prefix_is_not_computed_again() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", tokens(0, 9), max_tokens=1))
    run_step(scheduler)
    scheduler.add(make_request("b", [*tokens(0, 9), 50], max_tokens=1))
    scheduler.add(make_request("c", tokens(0, 8), max_tokens=1, cache_salt="other"))
    step, outputs = run_step(scheduler)
    assert scheduled(step) == {"b": 2, "c": 8}
    assert [output.num_cached_tokens for output in outputs] == [8, 0]
    stats = scheduler.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (9 + 10 + 8, 8)
    scheduler.reset_prefix_cache()
    scheduler.add(make_request("d", tokens(0, 9)))
    assert scheduled(run_step(scheduler)[0]) == {"d": 9}


def test_siblings_admitted_in_one_step_share_their_prompt() -> None:
    scheduler = make_scheduler()
    for index in range(3):
        scheduler.add(make_request(f"r{index}", tokens(0, 10)))
    step = scheduler.schedule()
    assert scheduled(step) == {"r0": 10, "r1": 2, "r2": 2}
    assert scheduler.stats().num_used_blocks == 2 + 3
    scheduler.update(results(scheduler, step))
    scheduler.check_integrity()


def test_without_prefix_caching_nothing_is_shared() -> None:
    scheduler = make_scheduler(enable_prefix_caching=False)
    for index in range(2):
        scheduler.add(make_request(f"r{index}", tokens(0, 10)))
    assert scheduled(run_step(scheduler)[0]) == {"r0": 10, "r1": 10}
    assert scheduler.stats().prefix_cache_queries == 0


def test_prompt_logprobs_are_computed_and_delivered_once() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=6, num_blocks=4)
    scheduler.add(make_request("a", tokens(0, 8), max_tokens=2))
    run_step(scheduler)
    run_step(scheduler)
    run_step(scheduler)
    scheduler.add(make_request("b", tokens(0, 8), prompt_logprobs=0, max_tokens=2))
    delivered: list[TokenLogprobs] = []

    def step_of_b() -> StepInput:
        step = scheduler.schedule()
        start = scheduler.requests["b"].num_computed_tokens
        output = results(scheduler, step)
        end = min(start + step.num_scheduled_tokens[0], 7)
        output.prompt_logprobs = {"b": [logprobs_at(tokens(0, position + 1)) for position in range(start, end)]}
        for core_output in scheduler.update(output):
            delivered.extend(core_output.prompt_logprobs or [])
        return step

    assert scheduled(step_of_b()) == {"b": 6}
    assert len(delivered) == 6
    scheduler.schedule()
    scheduler.forget()
    assert step_of_b().new_requests[0].num_computed_tokens == 4  # six were delivered: four of them are a full block
    step_of_b()
    assert delivered == [logprobs_at(tokens(0, count)) for count in range(1, 8)]
    assert not scheduler.requests


@pytest.mark.parametrize(
    ("kwargs", "sampled", "kept", "finish_reason", "stop_reason"),
    [
        ({"max_tokens": 3}, [5], [5], None, None),
        ({"max_tokens": 1}, [5], [5], "length", None),
        ({"max_tokens": 2}, [5, 6, 7], [5, 6], "length", None),
        ({"eos_token_ids": [5]}, [5], [5], "stop", None),
        ({"eos_token_ids": [5, 6]}, [4, 6, 5], [4, 6], "stop", None),
        ({"eos_token_ids": [5], "ignore_eos": True}, [5], [5], None, None),
        ({"eos_token_ids": [5], "ignore_eos": True, "stop_token_ids": [5]}, [5], [5], "stop", 5),
        ({"eos_token_ids": [5], "stop_token_ids": [5, 6]}, [5], [5], "stop", None),
        ({"stop_token_ids": [5, 6]}, [4, 6, 5], [4, 6], "stop", 6),
        ({"stop_token_ids": [5], "max_tokens": 1}, [5], [5], "stop", 5),
        ({"stop_token_ids": [5], "min_tokens": 2}, [5], [5], None, None),
        ({"stop_token_ids": [5], "min_tokens": 2}, [5, 5, 5], [5, 5], "stop", 5),
        ({"max_tokens": None}, [1] * 100, [1] * 97, "length", None),  # max_model_len is 100
        ({"max_tokens": 99}, [1] * 100, [1] * 97, "length", None),
    ],
)
def test_what_ends_a_request(
    kwargs: dict[str, object], sampled: list[int], kept: list[int], finish_reason: str | None, stop_reason: int | None
) -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", [1, 2, 3], logprobs=0, **kwargs))
    scheduler.schedule()
    entries = [logprobs_at([position]) for position in range(len(sampled))]
    (output,) = scheduler.update(StepOutput([sampled], logprobs={"a": entries}))
    assert (output.new_token_ids, output.finish_reason, output.stop_reason) == (kept, finish_reason, stop_reason)
    assert output.logprobs == entries[: len(kept)]
    assert bool(scheduler.requests) == (finish_reason is None)
    scheduler.check_integrity()


def test_an_unlimited_request_ends_where_the_cache_ends() -> None:
    scheduler = make_scheduler(num_blocks=2)
    scheduler.add(make_request("a", tokens(0, 5), max_tokens=None))
    outputs: list[CoreOutput] = []
    while scheduler.requests:
        outputs += run_step(scheduler)[1]
    assert len(outputs) == 4  # 8 slots hold the prompt and 3 of these: the last one is never computed
    assert outputs[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (make_request("r", tokens(0, 20)), "has 20 tokens, but must have at most 19: max_model_len is 20"),
        (make_request("r", tokens(0, 10), max_tokens=4), "needs 4 KV-cache blocks of 4 tokens for 10 .* has 3"),
        (make_request("r", tokens(0, 10), max_tokens=99), "needs 5 KV-cache blocks .* max_tokens=99"),
        (make_request("r", tokens(0, 13), max_tokens=None), "needs 4 KV-cache blocks .* one token to generate"),
        (make_request("known", [1]), "request_id is 'known'"),
        (make_request("r", [1], output_token_ids=[2, 3], max_tokens=2), "has 2 tokens, but must leave at least one"),
    ],
)
def test_what_can_never_run_is_refused_with_the_numbers(request_: Request, message: str) -> None:
    scheduler = make_scheduler(num_blocks=3, max_model_len=20)
    scheduler.add(make_request("known", [1]))
    with pytest.raises(ValueError, match=message):
        scheduler.add(request_)
    assert list(scheduler.requests) == ["known"]
    scheduler.add(make_request("fits", tokens(0, 10), max_tokens=3))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_blocks": 0}, "num_blocks is 0, but must be at least 1"),
        ({"max_model_len": 1}, "max_model_len is 1, but must be at least 2"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens is 0"),
        ({"block_size": -1}, "block_size is -1"),
        ({"long_prefill_token_threshold": -1}, "long_prefill_token_threshold is -1, but must be at least 0"),
        ({"policy": "lifo"}, "policy is 'lifo', but must be 'fcfs' or 'priority'"),
    ],
)
def test_a_wrong_config_is_refused(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scheduler(**kwargs)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt of request 'a' is empty"):
        make_request("a", [])


def test_abort_frees_at_any_moment() -> None:
    scheduler = make_scheduler(num_blocks=6)
    scheduler.add(make_request("running", tokens(0, 7)))
    scheduler.add(make_request("flying", tokens(100, 7)))
    scheduler.add(make_request("waiting", tokens(200, 15)))
    run_step(scheduler)
    assert scheduler.abort(["running", "nobody"]) == [CoreOutput("running", [], finish_reason="abort")]
    scheduler.check_integrity()
    step = scheduler.schedule()
    assert scheduled(step) == {"flying": 1, "waiting": 15}
    assert step.dropped_request_ids == ["running"]
    scheduler.abort(["flying"])
    output = StepOutput([[7], [7]])
    assert [core_output.request_id for core_output in scheduler.update(output)] == ["waiting"]
    scheduler.check_integrity()
    scheduler.abort(["waiting"])
    assert scheduler.stats().num_used_blocks == 0
    assert scheduler.schedule().request_ids == []
    scheduler.add(make_request("next", [1]))
    assert scheduler.schedule().dropped_request_ids == ["flying", "waiting"]  # told with the next step there is


def test_a_waiting_request_is_aborted_without_a_word_to_the_worker() -> None:
    scheduler = make_scheduler(num_blocks=2)
    scheduler.add(make_request("a", tokens(0, 7), max_tokens=2))
    scheduler.add(make_request("b", tokens(100, 7), max_tokens=2))
    run_step(scheduler)
    scheduler.abort(["b"])
    scheduler.check_integrity()
    assert scheduler.schedule().dropped_request_ids == []


def test_an_id_can_come_back_in_the_step_that_drops_it() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", [1, 2, 3]))
    step = scheduler.schedule()
    scheduler.abort(["a"])
    scheduler.add(make_request("a", [4, 5, 6, 7]))
    assert scheduler.update(StepOutput([[9]])) == []  # that was the other one's
    assert scheduler.requests["a"].token_ids == [4, 5, 6, 7]
    step = scheduler.schedule()
    assert step.dropped_request_ids == ["a"]
    assert [new.token_ids for new in step.new_requests] == [[4, 5, 6, 7]]


def test_a_request_added_with_output_goes_on_from_there() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", [1, 2], output_token_ids=[3, 4], max_tokens=3, prompt_logprobs=1))
    step = scheduler.schedule()
    assert scheduled(step) == {"a": 4}
    assert step.new_requests[0].num_prompt_tokens == 2
    entries = [logprobs_at([1])]
    (output,) = scheduler.update(StepOutput([[5]], prompt_logprobs={"a": entries}))
    assert output == CoreOutput("a", [5], finish_reason="length")  # the prompt's were delivered before


@pytest.mark.parametrize("end", [Scheduler.forget, lambda scheduler: scheduler.fail("boom")])
def test_nothing_of_a_failed_step_stays_cached(end: Callable[[Scheduler], object]) -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", tokens(0, 6)))
    run_step(scheduler)
    run_step(scheduler)
    scheduler.add(make_request("b", tokens(100, 9)))
    scheduler.add(make_request("c", tokens(100, 9)))
    scheduler.add(make_request("gone", tokens(200, 9)))
    scheduler.schedule()  # with this, the second block of `a` would be full
    scheduler.abort(["gone"])
    end(scheduler)
    scheduler.check_integrity()
    assert scheduler.stats().num_used_blocks == 0
    for name, prompt, num_cached in (
        ("x", [*tokens(0, 6), 7, 7, 0], 4),
        ("y", tokens(100, 9), 0),
        ("z", tokens(200, 9), 0),
    ):
        request = make_request(name, prompt)
        assert len(scheduler.prefix_cache.match(request)) * 4 == num_cached
    step = scheduler.schedule()
    assert set(step.dropped_request_ids) == {"a", "b", "c", "gone"}
    assert step.new_requests[0].num_computed_tokens == 4


def test_an_aborted_request_that_failed_leaves_nothing_cached() -> None:
    scheduler = make_scheduler()
    for name, start in (("a", 0), ("b", 100)):
        scheduler.add(make_request(name, tokens(start, 9)))
    scheduler.schedule()
    scheduler.abort(["a"])
    assert scheduler.update(StepOutput([[], [7]], errors={"a": "bad luck"})) == [CoreOutput("b", [7])]
    assert scheduler.prefix_cache.match(make_request("x", tokens(0, 9))) == []
    assert len(scheduler.prefix_cache.match(make_request("x", tokens(100, 9)))) == 2


def test_who_shared_with_a_request_that_failed_is_computed_again() -> None:
    scheduler = make_scheduler()
    for name, prompt in (("a", tokens(0, 9)), ("b", tokens(0, 10)), ("c", tokens(100, 9)), ("d", [*tokens(0, 8), 50])):
        scheduler.add(make_request(name, prompt))
    step = scheduler.schedule()
    assert scheduled(step) == {"a": 9, "b": 2, "c": 9, "d": 1}
    outputs = scheduler.update(StepOutput([[], [66], [7], [66]], errors={"a": "bad luck"}))
    assert outputs == [CoreOutput("a", [], finish_reason="error", error="bad luck"), CoreOutput("c", [7])]
    scheduler.check_integrity()
    step = scheduler.schedule()
    assert scheduled(step) == {"b": 10, "c": 1, "d": 1}
    assert set(step.dropped_request_ids) == {"a", "b", "d"}
