"""Random draws on a GPU, narrowed by min-p, top-k and top-p, without sorting and without a word to the host.

The same as lightvllm/worker/draw.py; test: tests/kernels/gpu/test_triton_sampling.py.

A token's weight is a whole number: e^((logit - largest) / temperature), rounded down to a multiple of 2^-44 or so. Sums
of them are exact in any order, so that a row's draw depends on nothing else, however many programs share the work. Tokens
are ordered by keys, which are all different: the logit, then, of equal ones the lower first, the token's id. min-p, top-k
and top-p each keep those from some key on, which is searched for by halving an interval of keys.

Few tokens are ever kept. Each row is cut into groups; as the k-th largest of the groups' largest has at least k tokens
from it on, the k-th largest of all is none below it, and likewise for a share of the whole weight. What is from there on
is gathered, and searched in registers; where it is too much, as in a flat distribution, the row is read again for each
step of a search.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_GROUPS = 2048
_CANDIDATES = 2048
_BLOCK = 2048
# Programs that share the work, of many rows or of one.
_PROGRAMS = 1024
_MOST_PARTS = 64
_BOUND_STEPS = 20

_LOG2_E = tl.constexpr(1.4426950408889634)
_ID_MASK = tl.constexpr(0x7FFFFFFF)
_LOWEST_KEY = tl.constexpr(-(2**63))
_UNREACHABLE = tl.constexpr(2**63 - 1)


@triton.jit
def _ordered(x):
    """Bits of float32, as integers that are ordered as they are; +0 and -0 are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _key(x, token):
    return (_ordered(x).to(tl.int64) << 32) + _ID_MASK - token


@triton.jit
def _weight(x, peak, sharpness, min_p, ONE: tl.constexpr):
    """What a token counts, ONE for the most likely, 0 for what min-p drops; sharpness: log2(e) / temperature"""
    weight = tl.exp2((x - peak) * sharpness)
    return tl.where(weight >= min_p, weight * ONE, 0).to(tl.int64)


@triton.jit
def _sharpness(temperature):
    return tl.minimum(_LOG2_E / temperature, 1e30)


@triton.jit
def _peaks(logits, peaks, size, logits_row, part_size, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest logits of the groups of a part of a row; NaN counts as infinity."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    end = tl.minimum((part + 1) * part_size, size)
    for start in range(part * part_size, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * logits_row + i, i < end, float("-inf")).to(tl.float32)
        best = tl.maximum(best, tl.where(x == x, x, float("inf")))
    best = tl.max(tl.reshape(best, [GROUPS, BLOCK // GROUPS]), axis=1)
    tl.store(peaks + (row * tl.num_programs(1) + part) * GROUPS + tl.arange(0, GROUPS), best)


@triton.jit
def _masses(
    logits, peaks, masses, temperature, min_p, size, logits_row, part_size,
    ONE: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The weight of a part of a row."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    peak = tl.max(tl.load(peaks + row * GROUPS + tl.arange(0, GROUPS)), axis=0)
    sharpness, least = _sharpness(tl.load(temperature + row)), tl.load(min_p + row)
    mass = tl.zeros([BLOCK], tl.int64)
    end = tl.minimum((part + 1) * part_size, size)
    for start in range(part * part_size, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * logits_row + i, i < end, float("-inf")).to(tl.float32)
        mass += _weight(x, peak, sharpness, least, ONE)
    tl.store(masses + row * tl.num_programs(1) + part, tl.sum(mass, axis=0))


@triton.jit
def _share(part, whole):
    """Of a whole, rounded up: what must be reached for less to be too little; at least 1."""
    share = tl.ceil(part.to(tl.float64) * whole.to(tl.float64)).to(tl.int64)
    return tl.maximum(tl.minimum(share, whole), 1)


@triton.jit
def _target(u, whole):
    """A share of a whole, and less than that."""
    return tl.minimum((u.to(tl.float64) * whole.to(tl.float64)).to(tl.int64), whole - 1)


@triton.jit
def _bounds(
    peaks, masses, temperature, top_k, top_p, min_p, bounds, counts, size,
    ONE: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """A logit that no kept token is below; infinity for a row that keeps all but what min-p drops."""
    row = tl.program_id(0)
    best = tl.load(peaks + row * GROUPS + tl.arange(0, GROUPS))
    peak = tl.max(best, axis=0)
    k, p = tl.load(top_k + row).to(tl.int64), tl.load(top_p + row)
    bound = float("inf")
    if ((k < size) | (p < 1)) & (peak < float("inf")) & (peak > float("-inf")):
        weights = _weight(best, peak, _sharpness(tl.load(temperature + row)), tl.load(min_p + row), ONE)
        target = _share(p, tl.sum(tl.load(masses + row * PARTS + tl.arange(0, PARTS)), axis=0))
        keys = _ordered(best)
        low = _ordered(tl.full([], float("-inf"), tl.float32)).to(tl.int64)
        high = tl.max(keys, axis=0).to(tl.int64) + 1
        for _ in range(STEPS):
            middle = (low + high) >> 1
            is_above = keys >= middle
            # top-p is of what top-k leaves, all of which must be there to be summed.
            enough_tokens = tl.sum(is_above.to(tl.int32), axis=0) >= k
            enough_weight = tl.sum(tl.where(is_above, weights, 0), axis=0) >= target
            is_enough = tl.where(k < size, enough_tokens, enough_weight)
            low, high = tl.where(is_enough, middle, low), tl.where(is_enough, high, middle)
        bits = low.to(tl.int32)
        bound = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    tl.store(bounds + row, bound)
    tl.store(counts + row, 0)


@triton.jit
def _gather(
    logits, bounds, counts, candidates, size, logits_row, part_size, CANDIDATES: tl.constexpr, BLOCK: tl.constexpr
):
    """The keys of the tokens from the bound on, as many as there is place for, in any order; and how many they are."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    bound = tl.load(bounds + row)
    if bound < float("inf"):
        end = tl.minimum((part + 1) * part_size, size)
        for start in range(part * part_size, end, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(logits + row * logits_row + i, i < end, float("-inf")).to(tl.float32)
            is_above = (x >= bound) & (i < end)
            number = tl.sum(is_above.to(tl.int32), axis=0)
            if number > 0:
                place = tl.atomic_add(counts + row, number) + tl.cumsum(is_above.to(tl.int32), axis=0) - 1
                tl.store(candidates + row * CANDIDATES + place, _key(x, i), is_above & (place < CANDIDATES))


@triton.jit
def _tally(pivot, keys, weights, is_few, logits, size, peak, sharpness, min_p, ONE: tl.constexpr, BLOCK: tl.constexpr):
    """Of the tokens from a key on: how many they are, their weight, and the first key below it."""
    if is_few:
        is_above = keys >= pivot
        count = tl.sum(is_above.to(tl.int32), axis=0)
        mass = tl.sum(tl.where(is_above, weights, 0), axis=0)
        below = tl.max(tl.where(is_above, _LOWEST_KEY, keys), axis=0)
    else:
        counts, masses = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int64)
        belows = tl.full([BLOCK], _LOWEST_KEY, tl.int64)
        for start in range(0, size, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(logits + i, i < size, float("-inf")).to(tl.float32)
            key = tl.where(i < size, _key(x, i), _LOWEST_KEY)
            is_above = key >= pivot
            counts += is_above.to(tl.int32)
            masses += tl.where(is_above, _weight(x, peak, sharpness, min_p, ONE), 0)
            belows = tl.maximum(belows, tl.where(is_above, _LOWEST_KEY, key))
        count, mass, below = tl.sum(counts, axis=0), tl.sum(masses, axis=0), tl.max(belows, axis=0)
    return count.to(tl.int64), mass, below


@triton.jit
def _find(
    enough_count, enough_mass, low, low_count, low_mass, high, keys, weights, is_few, logits, size, peak, sharpness,
    min_p, ONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The highest key from which on the tokens are so many or weigh so much, how many they are, and their weight.

    From `low` on they do, and are so many; from `high` on there are none.
    """
    high_count = low_count * 0
    while low_count - high_count > 1:
        middle = (low & high) + ((low ^ high) >> 1)
        count, mass, _ = _tally(middle, keys, weights, is_few, logits, size, peak, sharpness, min_p, ONE, BLOCK)
        if (count >= enough_count) | (mass >= enough_mass):
            low, low_count, low_mass = middle, count, mass
        else:
            high, high_count = middle, count
    _, _, found = _tally(high, keys, weights, is_few, logits, size, peak, sharpness, min_p, ONE, BLOCK)
    return found, low_count, low_mass


@triton.jit
def _draw_of_all(
    logits, masses, u, size, part_size, peak, sharpness, min_p, ONE: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The first token at which the weights up to it, in the order of their ids, are more than this share of all."""
    part = tl.arange(0, PARTS)
    mass = tl.load(masses + part)
    target = _target(u, tl.sum(mass, axis=0))
    is_before = tl.cumsum(mass, axis=0) <= target
    before = tl.sum(tl.where(is_before, mass, 0), axis=0)
    end = tl.sum(is_before.to(tl.int32), axis=0) * part_size
    token = end
    while (token == end) & (end < size):
        i = end + tl.arange(0, BLOCK)
        x = tl.load(logits + i, i < size, float("-inf")).to(tl.float32)
        up_to = before + tl.cumsum(_weight(x, peak, sharpness, min_p, ONE), axis=0)
        token = end + tl.sum((up_to <= target).to(tl.int32), axis=0)
        before = tl.max(up_to, axis=0)
        end += BLOCK
    return token


@triton.jit
def _choose(
    logits, peaks, masses, bounds, counts, candidates, u, temperature, top_k, top_p, min_p, out, size, logits_row,
    part_size, ONE: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, CANDIDATES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A row's token."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_row
    peak = tl.max(tl.load(peaks + row * GROUPS + tl.arange(0, GROUPS)), axis=0)
    sharpness, least, share = _sharpness(tl.load(temperature + row)), tl.load(min_p + row), tl.load(u + row)
    if not ((peak < float("inf")) & (peak > float("-inf"))):
        tl.store(out + row, -1)
    elif tl.load(bounds + row) == float("inf"):
        token = _draw_of_all(
            logits, masses + row * PARTS, share, size, part_size, peak, sharpness, least, ONE, PARTS, BLOCK
        )
        tl.store(out + row, token)
    else:
        count = tl.load(counts + row)
        is_few = count <= CANDIDATES
        i = tl.arange(0, CANDIDATES)
        is_there = is_few & (i < count)
        keys = tl.load(candidates + row * CANDIDATES + i, is_there, _LOWEST_KEY)
        bits = (keys >> 32).to(tl.int32)
        x = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        weights = tl.where(is_there, _weight(tl.where(is_there, x, peak), peak, sharpness, least, ONE), 0)
        k = tl.load(top_k + row).to(tl.int64)
        whole = tl.sum(tl.load(masses + row * PARTS + tl.arange(0, PARTS)), axis=0)
        mass = tl.where(is_few, tl.sum(weights, axis=0), whole)
        high = _key(peak, 0) + 1
        low = _key(tl.full([], float("-inf"), tl.float32), _ID_MASK)
        number = tl.where(is_few, count, size).to(tl.int64)
        if k < size:
            low, number, mass = _find(
                k, _UNREACHABLE, low, number, mass, high, keys, weights, is_few, logits, size, peak, sharpness, least,
                ONE, BLOCK,
            )  # fmt: skip
            whole = mass
        low, number, mass = _find(
            size + 1, _share(tl.load(top_p + row), whole), low, number, mass, high, keys, weights, is_few, logits, size,
            peak, sharpness, least, ONE, BLOCK,
        )  # fmt: skip
        key, number, mass = _find(
            size + 1, _target(share, mass) + 1, low, number, mass, high, keys, weights, is_few, logits, size, peak,
            sharpness, least, ONE, BLOCK,
        )  # fmt: skip
        tl.store(out + row, _ID_MASK - (key & _ID_MASK))


def draw(logits: Tensor, u: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Draw a token from each row: temperature, then min-p, top-k, top-p, then the draw; see `lightvllm.worker.draw`.

    As there, u falls into the tokens in descending order where top-k or top-p is on, and else in the order of their ids.

    Args:
        logits: [num_rows, vocab_size] of any float type, rows may lie apart.
        u: [num_rows] float64 or float32 in [0, 1)
        temperature: [num_rows] float32, above 0
        top_k: [num_rows] int32 or int64 in [1, vocab_size]; vocab_size is off.
        top_p: [num_rows] float64 or float32 in (0, 1]; of the probability that min-p and top-k leave.
        min_p: [num_rows] float32 in [0, 1]

    Returns:
        [num_rows] int64; -1 where the row's largest logit is not finite. A NaN is the largest.
    """
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    rows, size = logits.shape
    device = logits.device
    out = torch.empty(rows, dtype=torch.int64, device=device)
    if not rows:
        return out
    parts = min(triton.next_power_of_2(min(triton.cdiv(_PROGRAMS, rows), triton.cdiv(size, _BLOCK))), _MOST_PARTS)
    part_size = triton.cdiv(triton.cdiv(size, parts), 16) * 16
    one = 2.0 ** (62 - (size - 1).bit_length())  # the sum of a row's weights fits 63 bits
    peaks = torch.empty(rows, _GROUPS, dtype=torch.float32, device=device)
    masses = torch.empty(rows, parts, dtype=torch.int64, device=device)
    bounds = torch.empty(rows, dtype=torch.float32, device=device)
    counts = torch.empty(rows, dtype=torch.int32, device=device)
    candidates = torch.empty(rows, _CANDIDATES, dtype=torch.int64, device=device)
    cut = (size, logits.stride(0), part_size)
    _peaks[rows, parts](logits, peaks, *cut, _GROUPS // parts, _BLOCK, num_warps=8)
    _masses[rows, parts](logits, peaks, masses, temperature, min_p, *cut, one, _GROUPS, _BLOCK, num_warps=8)
    _bounds[rows,](
        peaks, masses, temperature, top_k, top_p, min_p, bounds, counts, size, one, _GROUPS, parts, _BOUND_STEPS,
        num_warps=4,
    )  # fmt: skip
    _gather[rows, parts](logits, bounds, counts, candidates, *cut, _CANDIDATES, _BLOCK, num_warps=8)
    _choose[rows,](
        logits, peaks, masses, bounds, counts, candidates, u, temperature, top_k, top_p, min_p, out, *cut,
        one, _GROUPS, parts, _CANDIDATES, _BLOCK, num_warps=8,
    )  # fmt: skip
    return out
