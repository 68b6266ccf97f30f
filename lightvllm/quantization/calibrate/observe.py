"""Running calibration sequences through one decoder layer, and keeping what its linear layers are given."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightvllm.attention.dense import DenseAttention
from lightvllm.layers.linear import Linear
from lightvllm.layers.rotary import RotaryEmbedding
from lightvllm.models.decoder import DecoderLayer

MOST_ROWS = 512


class Inputs:
    """What one linear layer is given.

    Args:
        num_tokens: that will come.
        with_hessian: whether the sum of x xᵀ is wanted, which is the size of a weight.

    Attributes:
        hessian: [inputs, inputs] float32
        rows: every so-manieth token's input, at most `MOST_ROWS`: [num_rows, inputs].
    """

    def __init__(self, num_tokens: int, with_hessian: bool) -> None:
        self.step = -(-num_tokens // MOST_ROWS)
        self.with_hessian = with_hessian
        self.hessian: Tensor | None = None
        self.seen = 0
        self._rows: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """x: [num_tokens, inputs]"""
        self._rows.append(x[-self.seen % self.step :: self.step].clone())
        self.seen += len(x)
        if self.with_hessian:
            product = x.T @ x
            self.hessian = product if self.hessian is None else self.hessian.add_(product)

    @property
    def rows(self) -> Tensor:
        """See the class."""
        return torch.cat(self._rows)


class _SeenAll(Exception):
    """Ends a forward pass of which nothing further is wanted."""


def observe(
    layer: DecoderLayer,
    linears: Sequence[Linear],
    sequences: Sequence[Tensor],
    rotary: RotaryEmbedding,
    with_hessian: bool = False,
) -> list[Inputs]:
    """The inputs of each of the linear layers, which are in the order in which the layer runs them.

    sequences: the layer's inputs, each [seq_len, hidden_size]
    """
    num_tokens = sum(map(len, sequences))
    inputs = [Inputs(num_tokens, with_hessian) for _ in linears]
    with contextlib.ExitStack() as hooks:
        for linear, kept in zip(linears, inputs, strict=True):
            hooks.enter_context(_watched(linear, kept, is_last=linear is linears[-1]))
        for x in sequences:
            with contextlib.suppress(_SeenAll):
                run_layer(layer, x, rotary)
    return inputs


@contextlib.contextmanager
def _watched(linear: Linear, inputs: Inputs, is_last: bool) -> Iterator[None]:
    def note(module: torch.nn.Module, args: tuple[Tensor]) -> None:
        inputs.add(args[0])
        if is_last:
            raise _SeenAll

    handle = linear.register_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


def run_layer(layer: DecoderLayer, x: Tensor, rotary: RotaryEmbedding) -> Tensor:
    """One sequence through one layer: [seq_len, hidden_size] -> the same shape"""
    cos, sin = rotary(torch.arange(len(x)), None)
    x, update = layer(x, None, cos, sin, DenseAttention(1))
    return x + update
