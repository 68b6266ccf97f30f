"""AWQ checkpoints (Lin et al., 2023, https://arxiv.org/abs/2306.00978) in AutoAWQ's "gemm" layout.

A linear layer has eight integers of 4 bits in a word, all packed along the outputs:

    qweight: [inputs, outputs / 8] int32
    qzeros: [groups, outputs / 8] int32
    scales: [groups, outputs]

and means scales * (qweight - qzeros). From the lowest bits on, a word holds its outputs 0, 2, 4, 6, 1, 3, 5, 7
(AutoAWQ, awq/modules/linear/gemm.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightvllm.quantization.bit_packing import unpack_words
from lightvllm.quantization.config import field
from lightvllm.quantization.format import Expected, Shape, StoredTensor, inputs_per_group
from lightvllm.quantization.weight import QuantizedWeight

# Where in a word each of its eight outputs is.
_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]


class AWQ:
    """See `lightvllm.quantization.format.Format`.

    A layer that has a plain `weight` is not quantized; `modules_to_not_convert` says no more than that.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        for name in ("version", "format", "checkpoint_format"):  # AutoAWQ's, and GPTQModel's names of the layout
            field({name: str(config.get(name) or "gemm").lower()}, name, ("gemm",))
        field(config, "bits", (4,))
        field(config, "zero_point", (True,), True)
        self.group_size = config.get("group_size")

    def weight(self, layer: str, shape: Shape, stored: Mapping[str, StoredTensor]) -> "AWQWeight | None":
        """See `Format.weight`."""
        if f"{layer}.weight" in stored:
            return None
        return AWQWeight(shape, inputs_per_group(self.group_size, shape[1], "group_size"))


@dataclass(frozen=True)
class AWQWeight:
    """See `lightvllm.quantization.format.StoredWeight`."""

    shape: Shape
    group_size: int

    def tensors(self) -> dict[str, Expected]:
        """See `StoredWeight.tensors`."""
        outputs, inputs = self.shape
        groups, words = -(-inputs // self.group_size), -(-outputs // 8)
        return {
            "qweight": Expected(((inputs, words),), ("I32",)),
            "qzeros": Expected(((groups, words),), ("I32",)),
            "scales": Expected(((groups, outputs),)),
        }

    def read(self, tensors: dict[str, Tensor]) -> QuantizedWeight:
        """See `StoredWeight.read`."""
        values, zeros = (_outputs_in_order(tensors[name])[: self.shape[0]] for name in ("qweight", "qzeros"))
        scales = tensors["scales"].T.float().contiguous()
        return QuantizedWeight(values, scales, zeros.int(), 4, self.group_size)


def _outputs_in_order(words: Tensor) -> Tensor:
    """[rows, outputs / 8] int32 -> [outputs, rows] uint8"""
    values = unpack_words(words, 4).unflatten(1, (-1, 8))
    return values[:, :, _PLACES].flatten(1).T.contiguous()
