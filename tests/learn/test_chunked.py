"""Chunked prefill: no decode waits longer than a chunk costs."""

import pytest

from lightvllm import learn
from lightvllm.learn import PlannedRequest, StepCost, Workload

ONE = Workload((PlannedRequest(input_len=1, output_len=20),))


def test_stalls_by_hand() -> None:
    cost = StepCost(fixed=1, per_token=1, per_context_token=0)
    result = learn.chunked(
        ONE,
        long_input_len=20,
        long_arrival=5,
        max_num_batched_tokens=(100, 6),
        long_prefill_token_threshold=(2,),
        cost=cost,
    )
    whole, chunks, threshold = result.settings
    # Steps of one decode take 2 s, so the prompt that comes at 5 begins at 6.
    assert (whole.longest_gap, whole.median_gap) == (1 + 21, 2)
    assert whole.long_prefill == (6, 28)
    assert whole.long_time_to_first_token == 23
    # Beside the decode there is room for 5 of its 20 tokens.
    assert sorted(chunks.gaps) == [2] * 15 + [1 + 6] * 4
    assert chunks.long_prefill == (6, 6 + 4 * 7)
    # With the first budget, but 2 tokens a step.
    assert (threshold.max_num_batched_tokens, threshold.long_prefill_token_threshold) == (100, 2)
    assert sorted(threshold.gaps) == [2] * 9 + [1 + 3] * 10


def test_no_stall_is_longer_than_a_whole_chunk_costs() -> None:
    cost = StepCost()
    result = learn.chunked(cost=cost)
    num_tokens = result.load.num_prompt_tokens + result.load.num_output_tokens + result.long_input_len
    for setting in result.settings:
        most = setting.max_num_batched_tokens
        if setting.long_prefill_token_threshold:
            most = setting.long_prefill_token_threshold + len(result.load.requests)
        assert setting.longest_gap <= cost.seconds(most, num_tokens)
        assert (
            len(setting.gaps) == len(setting.token_times) == result.load.num_output_tokens - len(result.load.requests)
        )
    large, medium, small, _ = result.settings
    assert large.longest_gap > medium.longest_gap > small.longest_gap
    assert large.long_time_to_first_token < medium.long_time_to_first_token < small.long_time_to_first_token


def test_a_workload_may_have_its_own_long_prompts() -> None:
    load = Workload((*ONE.requests, PlannedRequest(arrival=0.05, input_len=1000, output_len=2)))
    result = learn.chunked(load, long_input_len=0)
    assert all(setting.long_prefill is None for setting in result.settings)
    assert result.settings[0].longest_gap > StepCost().seconds(1000, 0)
    assert "comes in" not in result.table()
    result.plot()


def test_the_table_and_the_picture_have_each_setting() -> None:
    result = learn.chunked(ONE, long_input_len=100, max_num_batched_tokens=(64,), long_prefill_token_threshold=(8, 16))
    names = ["budget 64", "budget 64, threshold 8", "budget 64, threshold 16"]
    assert [line.partition("  ")[0] for line in result.table().splitlines()[3:]] == names
    panels = result.plot().axes
    assert [panel.get_title(loc="left").partition(":")[0] for panel in panels] == names
    assert [len(panel.lines[0].get_xdata()) for panel in panels] == [19] * 3


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="max_num_batched_tokens is empty"):
        learn.chunked(max_num_batched_tokens=())
    with pytest.raises(ValueError, match="long_input_len: -1 is out of range"):
        learn.chunked(long_input_len=-1)
    with pytest.raises(ValueError, match="long_prefill_token_threshold is -1"):
        learn.chunked(long_prefill_token_threshold=(-1,))
    with pytest.raises(ValueError, match="output_len: 1 for all"):
        learn.chunked(Workload.random(output_len=1))
