"""The prefix cache: which full KV-cache blocks hold which tokens, so that requests that begin alike share them.

Only full blocks are shared, and a block only together with all that come before it: what attention wrote there
depends on the whole prefix. A block is found by a chain of hashes (XXH3-128 over its parent's hash and its own token
ids) and is believed only after its token ids and its parent were compared: a hash collision costs a miss and can never
serve one request the cache of another.

Which block is in use, and which is given up when room is needed, is the business of `lightvllm.engine.block_pool`.
"""

import itertools
import secrets
from array import array
from typing import NamedTuple

import xxhash

from lightvllm.engine.request import NEVER, Request


class CachedBlock(NamedTuple):
    """A full block whose content is known.

    Attributes:
        key: unique over the life of the cache, unlike `block_id` and `hash`.
        parent: the key of the block before it; of a first block, the salt it belongs to.
    """

    key: int
    parent: int | str | None
    block_id: int
    hash: bytes
    token_ids: list[int]


def hash_block(parent_hash: bytes, token_ids: list[int], seed: int) -> bytes:
    """The hash of a block: of its tokens and, through its parent's hash, of all tokens before it."""
    return xxhash.xxh3_128_digest(parent_hash + array("I", token_ids).tobytes(), seed)


class PrefixCache:
    """Finds cached blocks by their tokens.

    Args:
        block_size: tokens in a block.
        seed: of the hashes. Random by default, so that nobody outside can prepare collisions.

    Attributes:
        num_query_tokens, num_hit_tokens: tokens of the requests admitted for the first time, and how many were cached.
    """

    def __init__(self, block_size: int, seed: int | None = None) -> None:
        self.block_size = block_size
        self.num_query_tokens = 0
        self.num_hit_tokens = 0
        self._seed = secrets.randbits(64) if seed is None else seed
        self._keys = itertools.count()
        self._by_hash: dict[bytes, CachedBlock] = {}
        self._by_block: dict[int, CachedBlock] = {}

    def __len__(self) -> int:
        return len(self._by_block)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._by_block

    def match(self, request: Request) -> list[CachedBlock]:
        """The cached blocks of the longest prefix of the request's tokens, as far as it may skip computing it."""
        hits: list[CachedBlock] = []
        parent: int | str | None = request.cache_salt
        for index in range(request.num_skippable_tokens // self.block_size):
            block = self._by_hash.get(self._block_hash(request, index))
            if block is None or block.parent != parent or block.token_ids != self._block_tokens(request, index):
                break
            hits.append(block)
            parent = block.key
        return hits

    def follow(self, request: Request, hits: list[CachedBlock]) -> None:
        """Start sharing the blocks that the request fills after `hits`."""
        request.cached_prefix = hits[-1] if hits else None
        request.next_block_end = (len(hits) + 1) * self.block_size

    def register(self, request: Request, num_tokens: int) -> list[int]:
        """Make the request's blocks that its first `num_tokens` tokens fill findable; returns the ids of the new ones.

        Where the same content is cached already, the block that has it stays and the request's own remains private.
        """
        registered = []
        while request.next_block_end <= num_tokens:
            index = request.next_block_end // self.block_size - 1
            prefix = request.cached_prefix
            if prefix is not None and self._by_hash.get(prefix.hash) is not prefix:
                request.next_block_end = NEVER  # the block before was given up: nobody could find this one
                break
            parent = request.cache_salt if prefix is None else prefix.key
            token_ids = self._block_tokens(request, index)
            block_hash = self._block_hash(request, index)
            block = self._by_hash.get(block_hash)
            if block is None:
                block = CachedBlock(next(self._keys), parent, request.block_ids[index], block_hash, token_ids)
                self._by_hash[block_hash] = self._by_block[block.block_id] = block
                registered.append(block.block_id)
            elif block.parent != parent or block.token_ids != token_ids:
                request.next_block_end = NEVER  # the hash is taken, by a collision or by the child of a block given up
                break
            request.cached_prefix = block
            request.next_block_end += self.block_size
        return registered

    def evict(self, block_id: int) -> None:
        """Forget what the block holds."""
        del self._by_hash[self._by_block.pop(block_id).hash]

    def clear(self) -> None:
        """Forget what all blocks hold."""
        self._by_hash.clear()
        self._by_block.clear()

    def record(self, num_query_tokens: int, num_hit_tokens: int) -> None:
        """Count one request for the hit rate."""
        self.num_query_tokens += num_query_tokens
        self.num_hit_tokens += num_hit_tokens

    def check_integrity(self) -> None:
        """Raise AssertionError if the two indices disagree."""
        assert len(self._by_hash) == len(self._by_block), f"{len(self._by_hash)} hashes, {len(self._by_block)} blocks"
        for block_id, block in self._by_block.items():
            assert block.block_id == block_id, f"block {block_id} is filed as {block.block_id}"
            assert self._by_hash.get(block.hash) is block, f"block {block_id} is not found by its hash"
            assert len(block.token_ids) == self.block_size, f"block {block_id} is cached but not full"

    def _block_tokens(self, request: Request, index: int) -> list[int]:
        return request.token_ids[index * self.block_size : (index + 1) * self.block_size]

    def _block_hash(self, request: Request, index: int) -> bytes:
        hashes = request.block_hashes
        while len(hashes) <= index:
            parent_hash = hashes[-1] if hashes else (request.cache_salt or "").encode()
            hashes.append(hash_block(parent_hash, self._block_tokens(request, len(hashes)), self._seed))
        return hashes[index]
