"""The tensors of a layer in a compressed-tensors checkpoint.

A weight means weight_scale * (weight - weight_zero_point), in signed integers or in FP8, and is stored as

    pack-quantized: weight_packed [outputs, inputs / n] int32 has n = 32 / bits integers in a word, those in the lowest
        bits first, shifted to be unsigned; weight_zero_point likewise, packed along the outputs; weight_shape [2]
    int-quantized, float-quantized: weight [outputs, inputs] int8 or FP8; weight_zero_point int8

(its compressors/pack_quantized and compressors/naive_quantized). weight_scale is [1], [outputs, 1], [outputs, groups]
or, of FP8, a number for each block of outputs and inputs. weight_g_idx [inputs] is each input's group where that is not
its place. How inputs are to be rounded (input_scale, input_zero_point) is not read: the kernels round them to 8 bits as
they come.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightvllm.quantization.bit_packing import unpack_words
from lightvllm.quantization.format import FLOATS, Expected, Shape
from lightvllm.quantization.weight import QuantizedWeight, order_of_groups

_WHOLE = ("I8", "I32", "I64")


@dataclass(frozen=True)
class Scheme:
    """How the layers of a group are quantized.

    Attributes:
        strategy: what shares a scale: "tensor", "channel", "group" or "block".
        has_order: whether inputs were sorted into groups by importance.
    """

    bits: int
    strategy: str
    is_symmetric: bool
    has_order: bool


@dataclass(frozen=True)
class _Weight:
    """What the ways to store a weight share.

    Attributes:
        layer: its name in the checkpoint.
        shape: outputs and inputs.
        block: outputs and inputs that share a scale.
    """

    layer: str
    shape: Shape
    scheme: Scheme
    block: tuple[int, int]

    def _grid(self) -> tuple[int, int]:
        """How many scales there are, along the outputs and along the inputs."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    def _scale_shapes(self) -> tuple[tuple[int, ...], ...]:
        grid = self._grid()
        return {"tensor": ((1,), (), (1, 1)), "channel": (grid, grid[:1])}.get(self.scheme.strategy, (grid,))

    def tensors(self) -> dict[str, Expected]:
        """See `lightvllm.quantization.format.StoredWeight.tensors`; here those that all ways have."""
        return {
            "weight_scale": Expected(self._scale_shapes()),
            "input_scale": Expected(None, is_optional=True),
            "input_zero_point": Expected(None, (*FLOATS, *_WHOLE, "F8_E4M3"), is_optional=True),
        }

    def _scales(self, tensors: dict[str, Tensor]) -> Tensor:
        """[outputs, 1] or [outputs, groups] float32, of blocks a row for each of theirs"""
        scales = tensors["weight_scale"].float().reshape(self._grid())
        return scales.expand(self.shape[0], 1).contiguous() if self.scheme.strategy == "tensor" else scales


class FloatWeight(_Weight):
    """In FP8 (e4m3), which no CPU multiplies: it is read as a plain weight."""

    def tensors(self) -> dict[str, Expected]:
        """See `StoredWeight.tensors`."""
        return {**super().tensors(), "weight": Expected((self.shape,), ("F8_E4M3",))}

    def read(self, tensors: dict[str, Tensor]) -> Tensor:
        """See `StoredWeight.read`."""
        outputs, inputs = self.shape
        scales = self._scales(tensors)
        if self.scheme.strategy == "block":
            scales = scales.repeat_interleave(self.block[0], dim=0)[:outputs]
            scales = scales.repeat_interleave(self.block[1], dim=1)[:, :inputs]
        return tensors["weight"].float() * scales


class IntegerWeight(_Weight):
    """In signed integers of 8 bits, or of 4 in as many bytes."""

    def tensors(self) -> dict[str, Expected]:
        """See `StoredWeight.tensors`."""
        scheme = self.scheme
        zeros = Expected(self._zero_shapes(), _WHOLE, is_optional=scheme.is_symmetric)
        found = {**super().tensors(), **self._values(), "weight_zero_point": zeros}
        if scheme.strategy == "group":
            found["weight_g_idx"] = Expected(((self.shape[1],),), ("I32", "I64"), is_optional=not scheme.has_order)
        return found

    def read(self, tensors: dict[str, Tensor]) -> QuantizedWeight:
        """See `StoredWeight.read`."""
        values, zeros, order = self._unsigned_values(tensors), self._unsigned_zeros(tensors), None
        groups = tensors.get("weight_g_idx")
        if groups is not None and not bool((groups == -1).all()):  # -1: not in use
            order = order_of_groups(groups, self.block[1], f"{self.layer}.weight_g_idx")
        if order is not None:
            values = values[:, order]
        return QuantizedWeight(values, self._scales(tensors), zeros, self.scheme.bits, self.block[1], order)

    def _values(self) -> dict[str, Expected]:
        return {"weight": Expected((self.shape,), ("I8",))}

    def _zero_shapes(self) -> tuple[tuple[int, ...], ...]:
        return self._scale_shapes()

    def _unsigned_values(self, tensors: dict[str, Tensor]) -> Tensor:
        """[outputs, inputs] uint8"""
        values = tensors["weight"].view(torch.uint8) + 2 ** (self.scheme.bits - 1)  # a byte wraps as a signed one does
        if self.scheme.bits == 4 and bool((values > 15).any()):
            raise ValueError(f"model: {self.layer}.weight has integers that 4 bits do not hold")
        return values

    def _unsigned_zeros(self, tensors: dict[str, Tensor]) -> Tensor | None:
        """[outputs, groups] int32; None for those of a symmetric weight"""
        if "weight_zero_point" not in tensors:
            return None
        zeros = tensors["weight_zero_point"].int().reshape(self._grid()) + 2 ** (self.scheme.bits - 1)
        return zeros.expand(self.shape[0], -1).contiguous()


class PackedWeight(IntegerWeight):
    """In unsigned integers of 4 or 8 bits, several in a word."""

    def _values(self) -> dict[str, Expected]:
        outputs, inputs = self.shape
        words = -(-inputs * self.scheme.bits // 32)
        return {
            "weight_packed": Expected(((outputs, words),), ("I32",)),
            "weight_shape": Expected(((2,),), ("I32", "I64"), is_optional=True),
        }

    def _packed_zero_shape(self) -> tuple[int, int]:
        rows, columns = self._grid()
        return -(-rows * self.scheme.bits // 32), columns

    def _zero_shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self._packed_zero_shape(), *self._scale_shapes())  # the first versions did not pack them

    def _unsigned_values(self, tensors: dict[str, Tensor]) -> Tensor:
        shape = tensors.get("weight_shape")
        if shape is not None and tuple(shape.tolist()) != self.shape:
            raise ValueError(f"model: {self.layer}.weight_shape is {shape.tolist()}, expected {list(self.shape)}")
        return unpack_words(tensors["weight_packed"], self.scheme.bits)[:, : self.shape[1]].contiguous()

    def _unsigned_zeros(self, tensors: dict[str, Tensor]) -> Tensor | None:
        zeros = tensors.get("weight_zero_point")
        if zeros is None or zeros.dtype != torch.int32:
            return super()._unsigned_zeros(tensors)
        return unpack_words(zeros.T, self.scheme.bits).T[: self.shape[0]].int().contiguous()
