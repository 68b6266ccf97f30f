"""The prefix cache: hits that can be counted by hand, and nothing where there is nothing to share."""

import pytest

from lightvllm import learn
from lightvllm.learn import PlannedRequest, StepCost, Workload

SECOND = StepCost(fixed=1, per_token=0, per_context_token=0)


def test_hits_by_hand() -> None:
    # 40 tokens alike are 2 full blocks of 16: three requests find 32 of their 48 prompt tokens.
    load = Workload.random(num_requests=4, input_len=8, output_len=1, shared_prefix_len=40)
    result = learn.prefix(load, block_size=16, cost=SECOND)
    assert result.with_cache.num_cached_tokens == (0, 32, 32, 32)
    assert result.with_cache.hit_rate == pytest.approx(96 / 192)
    assert result.with_cache.num_shared_blocks == 6
    assert result.with_cache.num_prefill_tokens == 96
    assert result.with_cache.peak_num_blocks == 2 + 4
    assert result.without.num_cached_tokens == (0, 0, 0, 0)
    assert (result.without.hit_rate, result.without.num_shared_blocks) == (0, 0)
    assert result.without.num_prefill_tokens == 192
    assert result.without.peak_num_blocks == 12


def test_each_prefix_is_shared_among_its_own() -> None:
    plans = [
        PlannedRequest(input_len=4, output_len=2, prefix=name, prefix_len=length)
        for name, length in (("a", 16), ("b", 16), ("a", 16), ("b", 12), ("a", 7))
    ]
    result = learn.prefix(Workload(tuple(plans)), block_size=4)
    assert result.with_cache.num_cached_tokens == (0, 0, 16, 12, 4)


def test_tokens_come_sooner_with_the_cache() -> None:
    result = learn.prefix()
    assert result.with_cache.hit_rate > 0.5
    assert result.with_cache.mean_time_to_first_token < result.without.mean_time_to_first_token
    assert result.with_cache.seconds <= result.without.seconds


def test_prompts_that_have_nothing_in_common_share_nothing() -> None:
    load = Workload.random(num_requests=10, input_len=(20, 60))
    result = learn.prefix(load)
    assert result.with_cache.hit_rate == 0
    assert result.with_cache == result.without


def test_the_picture_shows_both_ways() -> None:
    waits, blocks = learn.prefix().plot().axes
    assert [line.get_label() for line in waits.lines] == ["with cache", "without"]
    assert [line.get_label() for line in blocks.lines] == ["with cache", "without"]
    assert "tokens found" in waits.get_title()


@pytest.mark.parametrize(("name", "value"), [("num_blocks", 3), ("block_size", 0), ("max_num_seqs", 0)])
def test_what_cannot_work_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name}(:| is) {value}\b"):
        learn.prefix(**{name: value})
