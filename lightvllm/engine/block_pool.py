"""The KV-cache blocks: who owns which, which are free, and which to give up first."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from lightvllm.engine.prefix_cache import PrefixCache
from lightvllm.engine.request import Request


class BlockPool:
    """Reference-counted cache blocks, numbered from 0. Every operation is O(1) per block.

    A block is in exactly one of three states: owned by at least one request; idle, that is, owned by none but still
    findable through the prefix cache; or empty. New blocks are taken from the empty ones, then from the idle ones, the
    least recently used first.

    Args:
        num_blocks: how many there are.
        prefix_cache: knows which blocks hold content worth keeping, and is told when they are given up.
    """

    def __init__(self, num_blocks: int, prefix_cache: PrefixCache) -> None:
        self.num_blocks = num_blocks
        self.peak_num_used = 0
        self._prefix_cache = prefix_cache
        self._ref_counts = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))  # a stack: block 0 goes first
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated: empty or idle."""
        return len(self._empty) + len(self._idle)

    @property
    def num_used(self) -> int:
        """Blocks that requests own."""
        return self.num_blocks - self.num_free

    @property
    def usage(self) -> float:
        """The fraction of the blocks that requests own."""
        return self.num_used / self.num_blocks

    def num_idle(self, block_ids: Iterable[int]) -> int:
        """How many of these no request owns."""
        return sum(1 for block_id in block_ids if not self._ref_counts[block_id])

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, which must be there; idle ones are forgotten by the prefix cache."""
        assert count <= self.num_free, f"{count} blocks asked, {self.num_free} free"
        block_ids = []
        for _ in range(count):
            if self._empty:
                block_id = self._empty.pop()
            else:
                block_id, _ = self._idle.popitem(last=False)
                self._prefix_cache.evict(block_id)
            self._ref_counts[block_id] = 1
            block_ids.append(block_id)
        self.peak_num_used = max(self.peak_num_used, self.num_used)
        return block_ids

    def touch(self, block_ids: Iterable[int]) -> None:
        """Take these blocks, which the prefix cache found, once more."""
        for block_id in block_ids:
            if not self._ref_counts[block_id]:
                del self._idle[block_id]
            self._ref_counts[block_id] += 1
        self.peak_num_used = max(self.peak_num_used, self.num_used)

    def free(self, block_ids: Sequence[int]) -> None:
        """Give back the blocks of a request, its last first: the head of a prefix serves more, and survives longest."""
        for block_id in reversed(block_ids):
            assert self._ref_counts[block_id] > 0, f"block {block_id} is freed, but nobody owns it"
            self._ref_counts[block_id] -= 1
            if not self._ref_counts[block_id]:
                if block_id in self._prefix_cache:
                    self._idle[block_id] = None
                else:
                    self._empty.append(block_id)

    def uncache(self, block_id: int) -> None:
        """Forget what a cached block holds, whether or not it is owned."""
        self._prefix_cache.evict(block_id)
        if block_id in self._idle:
            del self._idle[block_id]
            self._empty.append(block_id)

    def uncache_all(self) -> None:
        """Forget what all blocks hold. Requests keep theirs."""
        self._prefix_cache.clear()
        self._empty.extend(self._idle)
        self._idle.clear()

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Raise AssertionError, saying what is wrong, unless every block has one state and the right count.

        Args:
            requests: all that may own blocks.
        """
        empty = set(self._empty)
        assert len(empty) == len(self._empty), "a block is empty twice"
        owned: Counter[int] = Counter()
        for request in requests:
            assert len(set(request.block_ids)) == len(request.block_ids), f"{request.request_id} owns a block twice"
            owned.update(request.block_ids)
        for block_id, count in enumerate(self._ref_counts):
            assert count == owned[block_id], f"block {block_id}: counted {count} owners, has {owned[block_id]}"
            places = (count > 0) + (block_id in self._idle) + (block_id in empty)
            assert places == 1, f"block {block_id} is in {places} of the states owned, idle and empty"
            if block_id in self._idle:
                assert block_id in self._prefix_cache, f"block {block_id} is idle, but nothing can find it"
            if block_id in empty:
                assert block_id not in self._prefix_cache, f"block {block_id} is empty, but could be found"
        self._prefix_cache.check_integrity()
