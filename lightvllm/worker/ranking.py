"""The k largest of each row, in an order that does not depend on chance: equal values by ascending index."""

import torch
from torch import Tensor

# From about here on looking for ties costs more than making them impossible.
_FEW = 512


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest values of each row and their indices, descending; of equal values the lower index comes first.

    `torch.topk` leaves open which of equal values it takes, and logits in bfloat16 are often equal.

    Args:
        x: # [num_rows, num_columns] float32, without NaN
        k: at most num_columns.

    Returns:
        values and indices, each # [num_rows, k]
    """
    if k > _FEW:
        indices = _largest_without_ties(x, k)
        return x.gather(-1, indices), indices
    # One more than asked for shows whether the last value is tied with one that is left out.
    values, indices = x.topk(min(k + 1, x.shape[1]))
    tied = (values[:, 1:] == values[:, :-1]).any(dim=-1).nonzero().squeeze(-1)
    values, indices = values[:, :k], indices[:, :k]
    if len(tied):
        indices[tied] = _largest_without_ties(x[tied], k)
        values[tied] = x[tied].gather(-1, indices[tied])
    return values, indices


def _largest_without_ties(x: Tensor, k: int) -> Tensor:
    """As `largest`, through integers that are all different: the value's bits in order, then the index backwards."""
    num_columns = x.shape[1]
    # Adding zero turns -0.0, whose bits differ, into 0.0. The bits of floats are ordered as the floats are, but for
    # negative ones backwards.
    bits = (x + 0.0).view(torch.int32).to(torch.int64)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    backwards = torch.arange(num_columns - 1, -1, -1, device=x.device)
    return num_columns - 1 - ((ordered << 32) | backwards).topk(k).values.bitwise_and_(0xFFFFFFFF)
