"""The prefix cache: finds what was computed before, and never what was not."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightvllm.engine import prefix_cache
from lightvllm.engine.prefix_cache import PrefixCache
from lightvllm.engine.request import NEVER, Request
from tests.engine.fakes import logprobs_at, make_request

BLOCK_SIZE = 4


class Filler:
    """Has requests fill blocks, each of its own."""

    def __init__(self, cache: PrefixCache) -> None:
        self.cache = cache
        self.num_blocks = 0
        self.content: dict[int, tuple[str | None, list[int]]] = {}  # block -> salt and all tokens up to its end

    def fill(self, tokens: list[int], cache_salt: str | None = None) -> Request:
        """Compute a request as the scheduler would: find what there is, compute the rest."""
        request = make_request("filler", tokens, cache_salt=cache_salt)
        hits = self.cache.match(request)
        num_new = -(-len(tokens) // BLOCK_SIZE) - len(hits)
        new = list(range(self.num_blocks, self.num_blocks + num_new))
        self.num_blocks += num_new
        request.block_ids = [block.block_id for block in hits] + new
        self.cache.follow(request, hits)
        for block_id in self.cache.register(request, len(tokens)):
            end = (request.block_ids.index(block_id) + 1) * BLOCK_SIZE
            self.content[block_id] = (cache_salt, tokens[:end])
        return request

    def match(self, tokens: list[int], cache_salt: str | None = None) -> list[int]:
        """The blocks found, each checked to hold just these tokens."""
        block_ids = [block.block_id for block in self.cache.match(make_request("r", tokens, cache_salt=cache_salt))]
        for index, block_id in enumerate(block_ids):
            assert self.content[block_id] == (cache_salt, tokens[: (index + 1) * BLOCK_SIZE])
        return block_ids


@pytest.fixture
def filler() -> Filler:
    return Filler(PrefixCache(BLOCK_SIZE))


def test_finds_the_longest_prefix_in_full_blocks(filler: Filler) -> None:
    request = filler.fill(list(range(14)))
    assert filler.match(list(range(14))) == request.block_ids[:3]
    assert filler.match([*range(9), 99, 99, 99, 99]) == request.block_ids[:2]
    assert filler.match([99, *range(14)]) == []


def test_the_last_token_is_always_computed(filler: Filler) -> None:
    request = filler.fill(list(range(12)))
    assert filler.match(list(range(12))) == request.block_ids[:2]
    assert filler.match(list(range(13))) == request.block_ids[:3]


def test_equal_tokens_after_another_prefix_are_not_found(filler: Filler) -> None:
    filler.fill([1, 1, 1, 1, 2, 2, 2, 2, 0])
    assert filler.match([2, 2, 2, 2, 0]) == []
    assert len(filler.match([1, 1, 1, 1, 2, 2, 2, 2, 0])) == 2


def test_salts_keep_apart(filler: Filler) -> None:
    for salt in (None, "a", "b"):
        assert filler.match([*range(9)], salt) == []
        filler.fill([*range(9)], salt)
        assert len(filler.match([*range(9)], salt)) == 2


def test_an_empty_salt_is_refused() -> None:
    with pytest.raises(ValueError, match="cache_salt of request 'r' is ''"):
        make_request("r", [1], cache_salt="")


def test_a_block_is_hashed_once(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    num_calls = 0
    original = prefix_cache.hash_block

    def counting(parent_hash: bytes, token_ids: list[int], seed: int) -> bytes:
        nonlocal num_calls
        num_calls += 1
        return original(parent_hash, token_ids, seed)

    monkeypatch.setattr(prefix_cache, "hash_block", counting)
    request = filler.fill(list(range(12)))
    assert num_calls == 3
    assert len(filler.cache.match(request)) == 2
    request.token_ids += [50, 51, 52, 53]
    request.block_ids.append(99)
    filler.cache.register(request, 16)
    filler.cache.match(request)
    assert num_calls == 4


def test_equal_content_is_cached_once(filler: Filler) -> None:
    first = filler.fill(list(range(8)))
    second = filler.fill(list(range(8)))  # computed its last block itself
    assert second.block_ids[0] == first.block_ids[0]
    assert second.block_ids[1] != first.block_ids[1]
    assert filler.match([*range(8), 9]) == first.block_ids
    second.token_ids += [9, 9, 9, 9]
    second.block_ids.append(77)
    assert filler.cache.register(second, 12) == [77]  # its chain goes on from the block that was there


def test_nothing_is_cached_after_a_block_that_is_gone(filler: Filler) -> None:
    request = filler.fill(list(range(8)))
    filler.cache.evict(request.block_ids[1])
    request.token_ids += [8, 9, 10, 11]
    request.block_ids.append(77)
    assert filler.cache.register(request, 12) == []
    assert request.next_block_end == NEVER
    assert filler.match([*range(12), 12]) == request.block_ids[:1]


def test_a_child_whose_parent_was_given_up_is_not_found_under_its_successor(filler: Filler) -> None:
    request = filler.fill(list(range(12)))
    filler.cache.evict(request.block_ids[0])
    assert filler.match([*range(12), 12]) == []
    again = filler.fill(list(range(12)))
    assert filler.match([*range(12), 12]) == again.block_ids[:1]
    filler.cache.check_integrity()


@pytest.mark.parametrize(
    ("weak_hash", "cached", "colliding"),
    [
        # The two first blocks have one hash, whatever their tokens: what follows the one must not follow the other.
        (lambda parent_hash, token_ids, seed: parent_hash + b"x", [1] * 4, [2] * 4 + [3] * 4),
        # The second blocks have one hash, whatever comes before: what follows [2, 3] must not follow [1, 3].
        (lambda parent_hash, token_ids, seed: bytes(token_ids), [1] * 4 + [3] * 4, [2] * 4 + [3] * 4 + [4] * 4),
    ],
)
def test_nothing_is_cached_after_a_collision(
    filler: Filler,
    monkeypatch: pytest.MonkeyPatch,
    weak_hash: Callable[[bytes, list[int], int], bytes],
    cached: list[int],
    colliding: list[int],
) -> None:
    monkeypatch.setattr(prefix_cache, "hash_block", weak_hash)
    first, second = filler.fill(cached), filler.fill(colliding)
    assert filler.match([*cached, *colliding[len(cached) :], 0]) == first.block_ids
    assert second.next_block_end == NEVER


def test_prompt_logprobs_need_their_positions_computed(filler: Filler) -> None:
    filler.fill(list(range(12)))
    request = make_request("r", [*range(13)], prompt_logprobs=0)
    assert filler.cache.match(request) == []
    request.take_prompt_logprobs([logprobs_at([position]) for position in range(9)], 0)
    assert len(filler.cache.match(request)) == 2
    request.take_prompt_logprobs([logprobs_at([position]) for position in range(9, 12)], 9)
    assert len(filler.cache.match(request)) == 3


def test_the_seed_differs_between_processes() -> None:
    hashes = []
    for _ in range(2):
        request = make_request("r", [1, 2, 3, 4, 5])
        PrefixCache(BLOCK_SIZE).match(request)
        hashes += request.block_hashes
    assert hashes[0] != hashes[1]
    assert len(hashes[0]) == 16


pieces = st.lists(st.sampled_from([[0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0]]), min_size=1, max_size=5)
prompts = pieces.map(lambda parts: [token_id for part in parts for token_id in part])


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(st.tuples(prompts, st.sampled_from([None, "a", "b"])), max_size=12),
    num_hashes=st.sampled_from([1, 2, 4, 8, None]),
    data=st.data(),
)
def test_never_serves_what_was_not_computed(
    requests: list[tuple[list[int], str | None]], num_hashes: int | None, data: st.DataObject
) -> None:
    """Whatever was filled, evicted and hashed: a block that is found holds the very tokens and the very prefix."""
    original = prefix_cache.hash_block
    with pytest.MonkeyPatch.context() as patch:
        if num_hashes is not None:  # with one, all blocks collide
            patch.setattr(prefix_cache, "hash_block", lambda *args: bytes([original(*args)[0] % num_hashes]))
        filler = Filler(PrefixCache(BLOCK_SIZE, seed=0))
        for tokens, salt in requests:
            request = filler.fill(tokens, salt)
            filler.match(tokens, salt)
            filler.cache.check_integrity()
            if num_hashes is None:
                assert len(filler.match([*tokens, 0], salt)) == len(tokens) // BLOCK_SIZE
            cached = [block_id for block_id in request.block_ids if block_id in filler.cache]
            if num_hashes is not None and cached and data.draw(st.booleans()):
                filler.cache.evict(data.draw(st.sampled_from(cached)))
        for tokens, salt in requests:
            filler.match([*tokens, 0], salt)
