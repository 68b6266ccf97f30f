"""Random draws on a GPU, narrowed by min-p, top-k and top-p, without sorting a row and without a word to the host.

The same as lightvllm/worker/draw.py, but that there tokens are in the order of float32 probabilities, and here in that
of logits, of which fewer are equal; test: tests/kernels/gpu/test_triton_sampling.py.

A token's weight is a whole number: e^((logit - largest) / temperature), rounded down to a multiple of 2^-44 or so. Sums
of them are exact in any order, so that a row's draw depends on nothing else, however many programs share the work.
Tokens are ordered by keys, which are all different: the logit, then, of equal ones the lower first, the token's id.
What min-p, top-k and top-p keep is each time the tokens from some key on.

Few tokens are ever kept. Each row is cut into groups; as the k-th largest of the groups' largest has at least k tokens
from it on, the k-th largest of all is not below it, and likewise for a share of the whole weight. What is from there on
is gathered and sorted. Where that is too much, as in a flat distribution, weights are added up in bins of neighbouring
logits, and only the bin in which tokens begin to be dropped, and the one that is drawn from, are gathered and sorted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_GROUPS = 2048
_CANDIDATES = 2048
_FEW = 256  # there mostly are fewer, and so few are sorted much faster
_BINS = 4096
_BLOCK = 2048
_WIDE_BLOCK = 8192  # of what one program does for a whole row
# Programs that share the work, of many rows or of one.
_PROGRAMS = 1024
_MOST_PARTS = 64
_BOUND_STEPS = 16

_LOG2_E = tl.constexpr(1.4426950408889634)
_ID_MASK = tl.constexpr(0x7FFFFFFF)
_LOWEST_KEY = tl.constexpr(-(2**63))
_HIGHEST = tl.constexpr(2**63 - 1)


@triton.jit
def _ordered(x):
    """Bits of float32, as integers that are ordered as they are; +0 and -0 are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _number(ordered):
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


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
def _peaks(logits, peaks, lows, size, logits_row, part_size, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest logits of the groups of a part of a row, where NaN counts as infinity; and the part's lowest."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    least = tl.full([BLOCK], float("inf"), tl.float32)
    end = tl.minimum((part + 1) * part_size, size)
    for start in range(part * part_size, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * logits_row + i, i < end, float("-inf")).to(tl.float32)
        best = tl.maximum(best, tl.where(x == x, x, float("inf")))
        least = tl.where(x > float("-inf"), tl.minimum(least, x), least)
    best = tl.max(tl.reshape(best, [GROUPS, BLOCK // GROUPS]), axis=1)
    tl.store(peaks + (row * tl.num_programs(1) + part) * GROUPS + tl.arange(0, GROUPS), best)
    tl.store(lows + row * tl.num_programs(1) + part, tl.min(least, axis=0))


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
    peaks, masses, temperature, top_k, top_p, min_p, bounds, counts, bin_counts, bin_masses, size,
    ONE: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, STEPS: tl.constexpr, CANDIDATES: tl.constexpr,
    BINS: tl.constexpr,
):  # fmt: skip
    """A logit that no kept token is below; infinity for a row that keeps all but what min-p drops."""
    row = tl.program_id(0).to(tl.int64)
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
        bound = _number(low.to(tl.int32))
        # As many tokens must be expected to be above it as groups have one there, and more.
        count = tl.where(tl.sum((best >= bound).to(tl.int32), axis=0) > CANDIDATES * 3 // 4, CANDIDATES + 1, 0)
        tl.store(counts + row, count)
        tl.store(bin_counts + row * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
        tl.store(bin_masses + row * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int64))
    tl.store(bounds + row, bound)


@triton.jit
def _gather(
    logits, bounds, counts, candidates, size, logits_row, part_size, CANDIDATES: tl.constexpr, BLOCK: tl.constexpr
):
    """The keys of the tokens from the bound on, as many as there is place for, in any order; and how many they are."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    bound = tl.load(bounds + row)
    if (bound < float("inf")) & (tl.load(counts + row) <= CANDIDATES):
        end = tl.minimum((part + 1) * part_size, size)
        for start in range(part * part_size, end, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(logits + row * logits_row + i, i < end, float("-inf")).to(tl.float32)
            is_above = (x >= bound) & (i < end)
            place = tl.atomic_add(counts + row + i * 0, 1, is_above, sem="relaxed")
            tl.store(candidates + row * CANDIDATES + place, _key(x, i), is_above & (place < CANDIDATES))


@triton.jit
def _bins_each(peak, lows, sharpness, PARTS: tl.constexpr, BINS: tl.constexpr):
    """How many bins a difference of 1 between logits is: what weighs nothing is beyond the last."""
    low = tl.min(tl.load(lows + tl.arange(0, PARTS)), axis=0)
    return (BINS - 1) / tl.maximum(tl.minimum(peak - low, 64 / sharpness), 1e-30)


@triton.jit
def _bin(x, peak, bins_each, BINS: tl.constexpr):
    return tl.minimum((peak - x) * bins_each, BINS - 1).to(tl.int32)


@triton.jit
def _fill_bins(
    logits, peaks, lows, bounds, counts, bin_counts, bin_masses, temperature, top_k, min_p, size, logits_row, part_size,
    ONE: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, CANDIDATES: tl.constexpr, BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """How many tokens of a part of a row each bin has, and their weight, if there are more than there is place for."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if (tl.load(bounds + row) < float("inf")) & (tl.load(counts + row) > CANDIDATES):
        peak = tl.max(tl.load(peaks + row * GROUPS + tl.arange(0, GROUPS)), axis=0)
        sharpness, least = _sharpness(tl.load(temperature + row)), tl.load(min_p + row)
        bins_each = _bins_each(peak, lows + row * PARTS, sharpness, PARTS, BINS)
        has_top_k = tl.load(top_k + row) < size
        end = tl.minimum((part + 1) * part_size, size)
        for start in range(part * part_size, end, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(logits + row * logits_row + i, i < end, float("-inf")).to(tl.float32)
            place = row * BINS + _bin(x, peak, bins_each, BINS)
            weight = _weight(x, peak, sharpness, least, ONE)
            tl.atomic_add(bin_masses + place, weight, (i < end) & (weight > 0), sem="relaxed")
            if has_top_k:
                tl.atomic_add(bin_counts + place, 1, i < end, sem="relaxed")


@triton.jit
def _gather_bin(
    bin, logits, candidates, place_count, size, peak, bins_each,
    CANDIDATES: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The keys of the tokens in a bin, as many as there is place for; and how many they are."""
    tl.store(place_count, 0)
    tl.debug_barrier()
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(logits + i, i < size, float("-inf")).to(tl.float32)
        is_in = (_bin(x, peak, bins_each, BINS) == bin) & (i < size)
        place = tl.atomic_add(place_count + i * 0, 1, is_in, sem="relaxed")
        tl.store(candidates + place, _key(x, i), is_in & (place < CANDIDATES))
    tl.debug_barrier()  # what one thread stored another will load
    return tl.atomic_add(place_count, 0)


@triton.jit
def _search(logits, size, enough_count, enough_mass, peak, sharpness, min_p, ONE: tl.constexpr, BLOCK: tl.constexpr):
    """The highest key from which on the tokens are so many or weigh so much, and their weight.

    By halving an interval of keys, with the whole row for each half: for thousands of equal logits, which nothing tells
    apart but their ids.
    """
    high = _key(peak, 0) + 1
    low = _key(tl.full([], float("-inf"), tl.float32), _ID_MASK)
    mass = high * 0
    while high - 1 > low:
        middle = (low & high) + ((low ^ high) >> 1)
        counts, masses = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int64)
        for start in range(0, size, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = tl.load(logits + i, i < size, float("-inf")).to(tl.float32)
            is_above = (_key(x, i) >= middle) & (i < size)
            counts += is_above.to(tl.int32)
            masses += tl.where(is_above, _weight(x, peak, sharpness, min_p, ONE), 0)
        found = tl.sum(masses, axis=0)
        is_enough = (tl.sum(counts, axis=0) >= enough_count) | (found >= enough_mass)
        low, high = tl.where(is_enough, middle, low), tl.where(is_enough, high, middle)
        mass = tl.where(is_enough, found, mass)
    return low, mass


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
def _sorted(candidates, number, peak, sharpness, min_p, ONE: tl.constexpr, SIZE: tl.constexpr):
    """So many of the keys in descending order, and the weight up to each, [SIZE]."""
    i = tl.arange(0, SIZE)
    keys = tl.sort(tl.load(candidates + i, i < number, _LOWEST_KEY), descending=True)
    x = tl.where(i < number, _number((keys >> 32).to(tl.int32)), float("-inf"))
    return keys, tl.cumsum(_weight(x, peak, sharpness, min_p, ONE), axis=0)


@triton.jit
def _first(keys, up_to, enough_count, enough_mass):
    """The first of sorted keys at which they are so many or weigh so much, and the weight up to it."""
    is_enough = (tl.arange(0, keys.shape[0]) + 1 >= enough_count) | (up_to >= enough_mass)
    return tl.max(tl.where(is_enough, keys, _LOWEST_KEY), axis=0), tl.min(tl.where(is_enough, up_to, _HIGHEST), axis=0)


@triton.jit
def _draw_of_few(
    candidates, number, mass, u, k, p, size, peak, sharpness, min_p, ONE: tl.constexpr, SIZE: tl.constexpr
):
    """The key at this share of what top-k and then top-p leave, in descending order."""
    keys, up_to = _sorted(candidates, number, peak, sharpness, min_p, ONE, SIZE)
    if k < size:
        _, mass = _first(keys, up_to, k, _HIGHEST)
    _, mass = _first(keys, up_to, _HIGHEST, _share(p, mass))
    key, _ = _first(keys, up_to, _HIGHEST, _target(u, mass) + 1)
    return key


@triton.jit
def _draw_of_many(
    logits, lows, mass, place_count, candidates, bin_counts, bin_masses, u, k, p, size, peak, sharpness, min_p,
    ONE: tl.constexpr, PARTS: tl.constexpr, CANDIDATES: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The same of more than there is place for: the bins say where to look."""
    bins_each = _bins_each(peak, lows, sharpness, PARTS, BINS)
    key = mass * 0
    for step in range(0, 3):  # for top-k, for top-p, and for the draw
        if (step > 0) | (k < size):
            enough_count = tl.where(step == 0, k, _HIGHEST)
            enough_mass = tl.where(step == 0, _HIGHEST, tl.where(step == 1, _share(p, mass), _target(u, mass) + 1))
            bin_count = tl.load(bin_counts + tl.arange(0, BINS)).to(tl.int64)
            bin_mass = tl.load(bin_masses + tl.arange(0, BINS))
            is_before = tl.cumsum(bin_mass, axis=0) < enough_mass
            if step == 0:
                is_before = tl.cumsum(bin_count, axis=0) < enough_count
            before_count = tl.sum(tl.where(is_before, bin_count, 0), axis=0)
            before_mass = tl.sum(tl.where(is_before, bin_mass, 0), axis=0)
            bin = tl.sum(is_before.to(tl.int32), axis=0)
            number = _gather_bin(bin, logits, candidates, place_count, size, peak, bins_each, CANDIDATES, BINS, BLOCK)
            if number > CANDIDATES:
                key, mass = _search(logits, size, enough_count, enough_mass, peak, sharpness, min_p, ONE, BLOCK)
            else:
                keys, up_to = _sorted(candidates, number, peak, sharpness, min_p, ONE, CANDIDATES)
                key, mass = _first(keys, before_mass + up_to, enough_count - before_count, enough_mass)
            tl.debug_barrier()  # before the candidates are stored anew
    return key


@triton.jit
def _choose(
    logits, peaks, lows, masses, bounds, counts, candidates, bin_counts, bin_masses, u, temperature, top_k, top_p,
    min_p, out, size, logits_row, part_size, ONE: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr,
    FEW: tl.constexpr, CANDIDATES: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr, WIDE_BLOCK: tl.constexpr,
):  # fmt: skip
    """A row's token."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_row
    peak = tl.max(tl.load(peaks + row * GROUPS + tl.arange(0, GROUPS)), axis=0)
    sharpness, least, share = _sharpness(tl.load(temperature + row)), tl.load(min_p + row), tl.load(u + row)
    token = row * 0 - 1
    if (peak < float("inf")) & (peak > float("-inf")):
        whole = tl.sum(tl.load(masses + row * PARTS + tl.arange(0, PARTS)), axis=0)
        if tl.load(bounds + row) == float("inf"):
            token = _draw_of_all(
                logits, masses + row * PARTS, share, size, part_size, peak, sharpness, least, ONE, PARTS, BLOCK
            ).to(tl.int64)
        else:
            count, candidates = tl.load(counts + row), candidates + row * CANDIDATES
            k, p = tl.load(top_k + row).to(tl.int64), tl.load(top_p + row)
            if count <= FEW:
                key = _draw_of_few(candidates, count, whole, share, k, p, size, peak, sharpness, least, ONE, FEW)
            elif count <= CANDIDATES:
                key = _draw_of_few(candidates, count, whole, share, k, p, size, peak, sharpness, least, ONE, CANDIDATES)
            else:
                key = _draw_of_many(
                    logits, lows + row * PARTS, whole, counts + row, candidates, bin_counts + row * BINS,
                    bin_masses + row * BINS, share, k, p, size, peak, sharpness, least,
                    ONE, PARTS, CANDIDATES, BINS, WIDE_BLOCK,
                )  # fmt: skip
            token = _ID_MASK - (key & _ID_MASK)
    tl.store(out + row, token)


def draw(logits: Tensor, u: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Draw a token from each row: temperature, then min-p, top-k, top-p, then the draw; see `lightvllm.worker.draw`.

    As there, u falls into tokens in descending order where top-k or top-p is on, and else in the order of their ids.

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
    lows = torch.empty(rows, parts, dtype=torch.float32, device=device)
    masses = torch.empty(rows, parts, dtype=torch.int64, device=device)
    bounds = torch.empty(rows, dtype=torch.float32, device=device)
    counts = torch.empty(rows, dtype=torch.int32, device=device)
    candidates = torch.empty(rows, _CANDIDATES, dtype=torch.int64, device=device)
    bin_counts = torch.empty(rows, _BINS, dtype=torch.int32, device=device)
    bin_masses = torch.empty(rows, _BINS, dtype=torch.int64, device=device)
    cut = (size, logits.stride(0), part_size)
    _peaks[rows, parts](logits, peaks, lows, *cut, _GROUPS // parts, _BLOCK, num_warps=8)
    _masses[rows, parts](logits, peaks, masses, temperature, min_p, *cut, one, _GROUPS, _BLOCK, num_warps=8)
    _bounds[rows,](
        peaks, masses, temperature, top_k, top_p, min_p, bounds, counts, bin_counts, bin_masses, size,
        one, _GROUPS, parts, _BOUND_STEPS, _CANDIDATES, _BINS, num_warps=4,
    )  # fmt: skip
    _gather[rows, parts](logits, bounds, counts, candidates, *cut, _CANDIDATES, _BLOCK, num_warps=8)
    _fill_bins[rows, parts](
        logits, peaks, lows, bounds, counts, bin_counts, bin_masses, temperature, top_k, min_p, *cut,
        one, _GROUPS, parts, _CANDIDATES, _BINS, _BLOCK, num_warps=8,
    )  # fmt: skip
    _choose[rows,](
        logits, peaks, lows, masses, bounds, counts, candidates, bin_counts, bin_masses, u, temperature, top_k, top_p,
        min_p, out, *cut, one, _GROUPS, parts, _FEW, _CANDIDATES, _BINS, _BLOCK, _WIDE_BLOCK, num_warps=8,
    )  # fmt: skip
    return out
