"""Small arrays on their way to a GPU and back, none of which the host waits for.

What a step needs is laid end to end in pinned memory and goes in one copy, always to the same place on the device, so
that a captured graph finds it there. Steps of one stream follow each other, so one place on the device is enough; on
the host there are as many as steps can be under way.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# One step runs, one waits behind it, one is being prepared.
_PLACES = 3
_ALIGNMENT = 16


class Staging:
    """Sends arrays to the device.

    Args:
        capacity: bytes that all arrays of a step take at most.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.on_device = torch.empty(capacity, dtype=torch.uint8, device=device)
        self.places = [_Place(capacity, device) for _ in range(_PLACES)]
        self.turn = 0

    def send(self, arrays: Sequence[np.ndarray]) -> list[int]:
        """Copy the arrays to the device, in order; returns where each begins, see `view`."""
        self.turn = (self.turn + 1) % _PLACES
        place = self.places[self.turn]
        place.wait()
        starts, end = [], 0
        for array in arrays:
            starts.append(_aligned(end))
            end = starts[-1] + array.nbytes
            place.array[starts[-1] : end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.on_device[:end].copy_(place.tensor[:end], non_blocking=True)
        place.mark()
        return starts

    def view(self, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> Tensor:
        """The tensor on the device that an array of this type and shape is sent to."""
        size = math.prod(shape) * dtype.itemsize
        return self.on_device[start : start + size].view(_TYPES[dtype]).view(shape)

    def views(self, like: Sequence[tuple[np.dtype, tuple[int, ...]]]) -> list[Tensor]:
        """The tensors that arrays of these types and shapes are sent to, if nothing comes before them."""
        tensors, end = [], 0
        for dtype, shape in like:
            tensors.append(self.view(_aligned(end), dtype, shape))
            end = _aligned(end) + tensors[-1].nbytes
        return tensors


_TYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}


class Fetching:
    """Brings tensors back; several may be under way."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.places = [_Place(capacity, device) for _ in range(_PLACES)]
        self.turn = 0

    def fetch(self, tensor: Tensor) -> "Fetched":
        """Start copying a contiguous tensor to the host."""
        self.turn = (self.turn + 1) % _PLACES
        place = self.places[self.turn]
        start = tensor.view(-1).view(torch.uint8)
        place.tensor[: start.numel()].copy_(start, non_blocking=True)
        place.mark()
        return Fetched(place, tensor.shape, tensor.dtype)


class Fetched:
    """A tensor on its way. It must be taken before two more have been fetched."""

    def __init__(self, place: "_Place", shape: torch.Size, dtype: torch.dtype) -> None:
        self._place, self._shape, self._dtype = place, shape, dtype

    def numpy(self) -> np.ndarray:
        """Wait for it."""
        self._place.wait()
        size = self._shape.numel() * self._dtype.itemsize
        return self._place.tensor[:size].view(self._dtype).view(self._shape).numpy().copy()


class _Place:
    """Memory on the host that a copy may be using."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.tensor = torch.empty(capacity, dtype=torch.uint8, pin_memory=is_cuda)
        self.array = self.tensor.numpy()
        self.event = torch.cuda.Event() if is_cuda else None

    def mark(self) -> None:
        """What was given to the device so far uses it."""
        if self.event is not None:
            self.event.record()

    def wait(self) -> None:
        """Until nothing uses it."""
        if self.event is not None:
            self.event.synchronize()


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
