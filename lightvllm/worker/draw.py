"""Random draws that are a function of (seed, position): alone, in any batch, after preemption, after a restart.

A row's draw takes one number u in [0, 1) from a counter-based hash of its seed and the position of the new token, and
inverts the cumulative distribution at u. For the same token to come out everywhere, the sums on the way must not depend
on the order in which a device adds, which it chooses by the shape of the batch. So they are made in integers:
probabilities become multiples of 2**-60, exact for all above 2**-37, and what is below 2**-60 is never drawn.
"""

import numpy as np
import torch
from torch import Tensor

from lightvllm.kernels import gpu
from lightvllm.seeds import GOLDEN_GAMMA, MIX_MULTIPLIERS
from lightvllm.worker.ranking import largest

_ONE = 2.0**60

# Elements of probabilities handled at once on an accelerator, where few launches count, and on a CPU, where memory that
# is used again at once does. Bounds the memory of the integer sums.
_ELEMENTS_AT_ONCE = 2**24
_ELEMENTS_AT_ONCE_CPU = 2**18

# Most top-k and top-p sets are within this many tokens; where one is not, its row is tried again with more.
_FIRST_CANDIDATES = 256
_MORE_CANDIDATES = 32


def uniforms(seed_keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One number in [0, 1) for each row: the output at `positions` of the SplitMix64 generator that starts at its key.

    Args:
        seed_keys: # [num_rows] uint64; `lightvllm.seeds.mix64` of the seeds.
        positions: # [num_rows]; how many tokens precede the one to draw.

    Returns:
        # [num_rows] float64, multiples of 2**-53
    """
    x = seed_keys + positions.astype(np.uint64) * np.uint64(GOLDEN_GAMMA)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_MULTIPLIERS[0])
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_MULTIPLIERS[1])
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)) * 2.0**-53


def draw(
    logits: Tensor,
    u: np.ndarray,
    temperature: np.ndarray,
    top_k: np.ndarray,
    top_p: np.ndarray,
    min_p: np.ndarray,
) -> Tensor:
    """Draw a token from each row: temperature, then min_p, top_k, top_p, then the draw.

    Args:
        logits: # [num_rows, vocab_size] float32; each row's largest is finite.
        u: # [num_rows] float64 in [0, 1)
        temperature: # [num_rows] float32, above 0
        top_k: # [num_rows] int64 in [1, vocab_size]; vocab_size is off.
        top_p: # [num_rows] float64 in (0, 1]; of the probability that min_p and top_k leave.
        min_p: # [num_rows] float32 in [0, 1]

    Returns:
        # [num_rows] int64
    """
    num_rows, vocab_size = logits.shape
    if logits.device.type == "cpu":
        step = max(torch.get_num_threads(), _ELEMENTS_AT_ONCE_CPU // vocab_size)  # a thread works on a whole row
    else:
        step = max(1, _ELEMENTS_AT_ONCE // vocab_size)
    drawn = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    for start in range(0, num_rows, step):
        part = slice(start, start + step)
        probs = torch.softmax(logits[part] / _column(temperature[part], logits), dim=-1)
        drawn[part] = _draw_from(probs, u[part], top_k[part], top_p[part], min_p[part])
    return drawn


def draw_anywhere(
    logits: Tensor, u: np.ndarray, temperature: np.ndarray, top_k: np.ndarray, top_p: np.ndarray, min_p: np.ndarray
) -> Tensor:
    """See `draw`. On a GPU a row's token is the one that `draw_on_device` gives in any other step."""
    if not logits.is_cuda:
        return draw(logits, u, temperature, top_k, top_p, min_p)
    numbers = (torch.from_numpy(x).to(logits.device) for x in (u, temperature, top_k, top_p, min_p))
    return draw_on_device(logits, *numbers)


def draw_on_device(
    logits: Tensor, u: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """See `draw`, with all of it on the device, without a word to the host where that is a GPU. # [num_rows] int64"""
    if logits.is_cuda and gpu.has_triton():
        from lightvllm.kernels.triton.sampling import draw as draw_on_gpu

        return draw_on_gpu(logits, u, temperature, top_k, top_p, min_p)
    return draw(logits.float(), *(x.cpu().numpy() for x in (u, temperature, top_k, top_p, min_p)))


def _draw_from(probs: Tensor, u: np.ndarray, top_k: np.ndarray, top_p: np.ndarray, min_p: np.ndarray) -> Tensor:
    narrowed = (top_k < probs.shape[1]) | (top_p < 1)
    if narrowed.all():
        return _draw_narrowed(probs, u, top_k, top_p, min_p)
    if narrowed.any():
        drawn = torch.empty(len(probs), dtype=torch.int64, device=probs.device)
        for mask in (narrowed, ~narrowed):
            part = torch.from_numpy(mask).to(probs.device)
            drawn[part] = _draw_from(probs[part], u[mask], top_k[mask], top_p[mask], min_p[mask])
        return drawn
    if min_p.any():
        probs = _drop_below(probs, probs.amax(dim=-1, keepdim=True) * _column(min_p, probs))
    return _invert_cdf(probs, u)


def _draw_narrowed(probs: Tensor, u: np.ndarray, top_k: np.ndarray, top_p: np.ndarray, min_p: np.ndarray) -> Tensor:
    """Draw among the most likely tokens, of which few need to be looked at: first a few hundred, then more."""
    drawn = torch.empty(len(probs), dtype=torch.int64, device=probs.device)
    pending = np.arange(len(probs))
    num_candidates = _FIRST_CANDIDATES
    while len(pending):
        num_candidates = min(num_candidates, probs.shape[1])
        values, token_ids = largest(probs[torch.from_numpy(pending).to(probs.device)], num_candidates)
        kept, is_complete = _narrow(values, probs.shape[1], top_k[pending], top_p[pending], min_p[pending])
        chosen = token_ids.gather(-1, _invert_cdf(kept, u[pending])[:, None]).squeeze(-1)
        done = torch.from_numpy(pending[is_complete]).to(probs.device)
        drawn[done] = chosen[torch.from_numpy(is_complete).to(probs.device)]
        pending = pending[~is_complete]
        num_candidates *= _MORE_CANDIDATES
    return drawn


def _narrow(
    values: Tensor, vocab_size: int, top_k: np.ndarray, top_p: np.ndarray, min_p: np.ndarray
) -> tuple[Tensor, np.ndarray]:
    """Set to zero the probabilities outside min_p, top_k and top_p, and say of which rows this can be said already.

    Args:
        values: # [num_rows, num_candidates]; the largest probabilities of each row, descending.

    Returns:
        the values that stay, the others zero; and # [num_rows] bool: whether the candidates hold all that stay.
    """
    num_candidates = values.shape[1]
    ranks = torch.arange(num_candidates, device=values.device)
    values = _drop_below(values, values[:, :1] * _column(min_p, values))
    values = torch.where(ranks < _column(top_k, values), values, 0)
    weights = _weights(values)
    cumulative = weights.cumsum(dim=-1)

    # top_p counts from what min_p and top_k leave, which must be among the candidates to be summed. Where they are off
    # the sum is one, and it is enough that the candidates reach top_p.
    is_whole = torch.from_numpy((top_k == vocab_size) & (min_p == 0)).to(values.device)
    mass = torch.where(is_whole, _ONE, cumulative[:, -1].double())
    target = _column(top_p, values) * mass[:, None]
    ends_here = (values[:, -1] == 0) | torch.from_numpy(top_k <= num_candidates).to(values.device)
    is_complete = ends_here | (is_whole & (cumulative[:, -1] >= target[:, 0]))
    return torch.where(cumulative - weights < target, values, 0), is_complete.cpu().numpy()


def _invert_cdf(probs: Tensor, u: np.ndarray) -> Tensor:
    """The first column at which the cumulative part of the row's sum exceeds u. # [num_rows] int64"""
    cumulative = _weights(probs).cumsum_(dim=-1)
    total = cumulative[:, -1:]
    # The product may round up to the total, which no column exceeds.
    target = torch.minimum((_column(u, probs) * total).to(torch.int64), total - 1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def _weights(probs: Tensor) -> Tensor:
    """Probabilities as integers: times 2**60, so that a row's sum, about one, is far from the largest int64."""
    return (probs * _ONE).to(torch.int64)


def _drop_below(probs: Tensor, floor: Tensor) -> Tensor:
    return torch.where(probs >= floor, probs, 0)


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    """# [num_rows, 1]; on the device of `like`"""
    return torch.from_numpy(values).to(like.device)[:, None]
