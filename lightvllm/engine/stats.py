"""The engine's figures at one moment."""

import msgspec


class EngineStats(msgspec.Struct, frozen=True):
    """A snapshot; counters count from the engine's start.

    Attributes:
        num_running: requests that own cache blocks.
        num_waiting: requests that wait for room, preempted ones included.
        num_blocks: KV-cache blocks there are.
        num_used_blocks, peak_num_used_blocks: blocks that requests own, now and at most so far. Blocks kept only for
            the prefix cache are free ones.
        prefix_cache_queries, prefix_cache_hits: counters, in tokens: of the requests that looked for their prefix, and
            how many of these the cache had.
        num_preemptions: counter: requests that lost their blocks to an earlier one.
    """

    num_running: int
    num_waiting: int
    num_blocks: int
    num_used_blocks: int
    peak_num_used_blocks: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_preemptions: int

    @property
    def kv_cache_usage(self) -> float:
        """The fraction of the KV cache in use."""
        return self.num_used_blocks / self.num_blocks

    @property
    def prefix_cache_hit_rate(self) -> float:
        """The fraction of the queried tokens that were cached; 0 before the first query."""
        return self.prefix_cache_hits / self.prefix_cache_queries if self.prefix_cache_queries else 0.0
