"""The protocol of a quantized checkpoint's format: which tensors a linear layer has there, and what they mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lightvllm.quantization.config import unsupported
from lightvllm.quantization.weight import QuantizedWeight

# Types by safetensors' names.
FLOATS = ("F16", "BF16", "F32", "F64")

# [outputs, inputs]
Shape = tuple[int, int]


class StoredTensor(Protocol):
    """A tensor that is still in its file, as safetensors hands it out."""

    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...

    def __getitem__(self, index: Any) -> Tensor: ...


@dataclass(frozen=True)
class Expected:
    """A tensor that a file should have.

    Attributes:
        shapes: those that it may have; None for any.
        types: those that it may have.
        is_optional: whether it may be missing.
    """

    shapes: tuple[tuple[int, ...], ...] | None
    types: tuple[str, ...] = FLOATS
    is_optional: bool = False

    def problem(self, stored: StoredTensor) -> str | None:
        """What is wrong with this one, in words to follow its name; None where nothing is."""
        shape, dtype = stored.get_shape(), stored.get_dtype()
        if self.shapes is not None and tuple(shape) not in self.shapes:
            return f"has shape {shape}, expected {' or '.join(str(list(shape)) for shape in self.shapes)}"
        if dtype not in self.types:
            return f"has type {dtype}, expected {' or '.join(self.types)}"
        return None


class StoredWeight(Protocol):
    """One linear layer's weight as a checkpoint has it."""

    def tensors(self) -> dict[str, Expected]:
        """The tensors it is made of, by what follows the layer's name and a dot."""
        ...

    def read(self, tensors: dict[str, Tensor]) -> QuantizedWeight | Tensor:
        """Put together what is there of `tensors()`, with the same keys.

        Returns:
            the weight; a plain one, float32, [outputs, inputs], where the format has no integers.

        Raises:
            ValueError: tensors that contradict each other or the configuration.
        """
        ...


class Format(Protocol):
    """How a checkpoint's linear layers are quantized; made of its `quantization_config`."""

    def weight(self, layer: str, shape: Shape, stored: Mapping[str, StoredTensor]) -> StoredWeight | None:
        """A linear layer's weight; None if it is a plain one.

        Args:
            layer: its name in the checkpoint.
            stored: all tensors of the checkpoint by name.

        Raises:
            ValueError: the layer is quantized in a way that we cannot honour.
        """
        ...


def inputs_per_group(group_size: Any, inputs: int, field: str) -> int:
    """How many neighbouring inputs share a scale; a `group_size` of -1 means all.

    Args:
        field: where in quantization_config the size is.

    Raises:
        ValueError: the kernels do not take groups of this size.
    """
    expected = "-1 or a multiple of 8"
    if not isinstance(group_size, int) or isinstance(group_size, bool):
        raise unsupported(field, group_size, expected)
    if group_size == -1 or group_size >= inputs:
        return inputs
    if group_size < 8 or group_size % 8:
        raise unsupported(field, group_size, expected)
    return group_size
