"""The block pool: owners are counted, the least recently used block goes first, nothing is lost."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lightvllm.engine.block_pool import BlockPool
from lightvllm.engine.prefix_cache import PrefixCache
from lightvllm.engine.request import Request
from tests.engine.fakes import make_request


def make_pool(num_blocks: int) -> tuple[BlockPool, PrefixCache]:
    cache = PrefixCache(block_size=1)
    return BlockPool(num_blocks, cache), cache


def owner(block_ids: list[int]) -> Request:
    request = make_request("owner", [1])
    request.block_ids = block_ids
    return request


def cache_blocks(cache: PrefixCache, block_ids: list[int], first_token: int) -> None:
    """Make the blocks findable, each with one token."""
    request = make_request("writer", list(range(first_token, first_token + len(block_ids))))
    request.block_ids = block_ids
    cache.follow(request, [])
    assert cache.register(request, len(block_ids)) == block_ids


def test_allocates_every_block_once() -> None:
    pool, _ = make_pool(4)
    first, second = pool.allocate(3), pool.allocate(1)
    assert sorted(first + second) == [0, 1, 2, 3]
    assert (pool.num_free, pool.num_used, pool.usage) == (0, 4, 1.0)
    with pytest.raises(AssertionError, match="1 blocks asked, 0 free"):
        pool.allocate(1)
    pool.free(first)
    assert (pool.num_free, pool.num_used, pool.peak_num_used) == (3, 1, 4)


def test_a_shared_block_is_free_when_its_last_owner_leaves() -> None:
    pool, _ = make_pool(2)
    block_ids = pool.allocate(1)
    pool.touch(block_ids)
    pool.free(block_ids)
    assert pool.num_used == 1
    pool.free(block_ids)
    assert pool.num_used == 0
    with pytest.raises(AssertionError, match="nobody owns it"):
        pool.free(block_ids)


def test_empty_blocks_go_before_idle_ones_and_these_from_the_tail_of_the_oldest() -> None:
    pool, cache = make_pool(5)
    old, new = pool.allocate(2), pool.allocate(2)
    cache_blocks(cache, old, first_token=10)
    cache_blocks(cache, new, first_token=20)
    pool.free(old)
    pool.free(new)
    assert pool.num_idle(old + new) == 4
    taken = [pool.allocate(1)[0] for _ in range(5)]
    assert taken == [4, old[1], old[0], new[1], new[0]]
    assert len(cache) == 0


def test_a_block_found_again_is_the_last_to_go() -> None:
    pool, cache = make_pool(2)
    first, second = pool.allocate(1), pool.allocate(1)
    cache_blocks(cache, first, first_token=1)
    cache_blocks(cache, second, first_token=2)
    pool.free(first)
    pool.free(second)
    pool.touch(first)
    pool.free(first)
    assert pool.allocate(2) == second + first


@pytest.mark.parametrize("is_owned", [True, False])
def test_an_uncached_block_cannot_be_found_and_is_not_lost(is_owned: bool) -> None:
    pool, cache = make_pool(2)
    block_ids = pool.allocate(1)
    cache_blocks(cache, block_ids, first_token=1)
    if not is_owned:
        pool.free(block_ids)
    pool.uncache(block_ids[0])
    assert block_ids[0] not in cache
    pool.check_integrity([owner(block_ids)] if is_owned else [])
    if is_owned:
        pool.free(block_ids)
    assert sorted(pool.allocate(2)) == [0, 1]


def test_integrity_check_sees_a_leak_a_double_owner_and_a_stale_hash() -> None:
    pool, cache = make_pool(3)
    block_ids = pool.allocate(2)
    pool.check_integrity([owner(block_ids)])
    with pytest.raises(AssertionError, match="counted 1 owners, has 0"):
        pool.check_integrity([owner(block_ids[:1])])
    with pytest.raises(AssertionError, match="counted 1 owners, has 2"):
        pool.check_integrity([owner(block_ids), owner(block_ids)])
    with pytest.raises(AssertionError, match="owns a block twice"):
        pool.check_integrity([owner(block_ids + block_ids)])
    cache_blocks(cache, [2], first_token=1)
    with pytest.raises(AssertionError, match="block 2 is empty, but could be found"):
        pool.check_integrity([owner(block_ids)])


class PoolMachine(RuleBasedStateMachine):
    """Random owners of random blocks, against plain counting."""

    NUM_BLOCKS = 7

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.cache = make_pool(self.NUM_BLOCKS)
        self.owners: list[Request] = []
        self.next_token = 0

    def owned(self) -> Counter[int]:
        return Counter(block_id for request in self.owners for block_id in request.block_ids)

    @rule(data=st.data())
    def allocate(self, data: st.DataObject) -> None:
        block_ids = self.pool.allocate(data.draw(st.integers(0, self.pool.num_free)))
        assert not any(block_id in self.owned() or block_id in self.cache for block_id in block_ids)
        self.owners.append(owner(block_ids))

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        request = self.owners.pop(data.draw(st.integers(0, len(self.owners) - 1)))
        self.pool.free(request.block_ids)

    @rule(data=st.data())
    def cache_some(self, data: st.DataObject) -> None:
        candidates = sorted(block_id for block_id in self.owned() if block_id not in self.cache)
        if candidates:
            block_ids = data.draw(st.lists(st.sampled_from(candidates), unique=True, min_size=1))
            cache_blocks(self.cache, block_ids, self.next_token)
            self.next_token += len(block_ids)

    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        cached = [block_id for block_id in range(self.NUM_BLOCKS) if block_id in self.cache]
        if cached:
            block_ids = data.draw(st.lists(st.sampled_from(cached), unique=True, min_size=1))
            assert self.pool.num_idle(block_ids) == sum(block_id not in self.owned() for block_id in block_ids)
            self.pool.touch(block_ids)
            self.owners.append(owner(block_ids))

    @rule(data=st.data())
    def uncache(self, data: st.DataObject) -> None:
        cached = [block_id for block_id in range(self.NUM_BLOCKS) if block_id in self.cache]
        if cached:
            self.pool.uncache(data.draw(st.sampled_from(cached)))

    @rule()
    def uncache_all(self) -> None:
        self.pool.uncache_all()
        assert len(self.cache) == 0

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check_integrity(self.owners)
        assert self.pool.num_used == len(self.owned())
        assert self.pool.num_free == self.NUM_BLOCKS - len(self.owned())


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
