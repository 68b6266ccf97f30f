"""Preemption: a case counted by hand, and what holds for all."""

import pytest

from lightvllm import learn
from lightvllm.learn import PlannedRequest, StepCost, Workload
from lightvllm.learn.preempt import Preemption

SECOND = StepCost(fixed=1, per_token=0, per_context_token=0)
# Each needs 3 blocks of 4 for 9 tokens, the tenth is never computed: two of them want 6 blocks.
TWO = Workload(tuple(PlannedRequest(input_len=4, output_len=6) for _ in range(2)))


@pytest.mark.parametrize(("enable_prefix_caching", "num_recomputed"), [(False, 8), (True, 4)])
def test_tokens_computed_twice_by_hand(enable_prefix_caching: bool, num_recomputed: int) -> None:
    """In its sixth step the first needs a third block of four, and the second loses both of its own.

    The first takes one of them. With the prefix cache the second finds the other, its first, again.
    """
    result = learn.preempt(
        TWO, num_blocks=(6, 4), block_size=4, enable_prefix_caching=enable_prefix_caching, cost=SECOND
    )
    enough, scarce = result.pools
    assert (enough.preemptions, enough.num_recomputed_tokens, enough.seconds) == ((), 0, 6)
    assert enough.num_used_blocks == (2, 4, 4, 4, 4, 6)
    assert scarce.preemptions == (Preemption(time=5, request=1),)
    assert scarce.num_recomputed_tokens == num_recomputed
    assert scarce.num_used_blocks == (2, 4, 4, 4, 4, 3, 3)
    assert scarce.num_waiting == (0, 0, 0, 0, 0, 1, 0)
    assert scarce.seconds == 7
    assert scarce.mean_latency == 6.5


def test_fewer_blocks_cost_latency() -> None:
    result = learn.preempt()
    first, *others = result.pools
    assert first.num_blocks == result.load.num_blocks(16)
    assert (first.preemptions, first.num_recomputed_tokens) == ((), 0)
    assert max(first.num_used_blocks) <= first.num_blocks
    for pool in others:
        assert pool.preemptions
        assert pool.num_recomputed_tokens > 0
        assert max(pool.num_used_blocks) <= pool.num_blocks
        assert pool.mean_latency > first.mean_latency


def test_the_table_says_who_and_the_picture_when() -> None:
    result = learn.preempt(TWO, num_blocks=(6, 4), block_size=4, enable_prefix_caching=False, cost=SECOND)
    enough, scarce = [line.split() for line in result.table().splitlines()[3:]]
    assert enough[:4] == ["6", "0", "-", "0"]
    assert scarce[:4] == ["4", "1", "1", "8"]
    assert (enough[-1], scarce[-1]) == ("1.00x", "1.08x")
    marks = [[text.get_text() for text in panel.texts] for panel in result.plot().axes]
    assert marks == [[], ["1"]]


def test_a_pool_that_one_request_does_not_fit_in_is_refused() -> None:
    with pytest.raises(ValueError, match="num_blocks: 2 is out of range, expected at least 3 for one request"):
        learn.preempt(TWO, num_blocks=(2,), block_size=4)
    with pytest.raises(ValueError, match="num_blocks is empty"):
        learn.preempt(num_blocks=())
