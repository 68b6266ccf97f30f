"""A model's weights while its engine sleeps: in the host's memory, with nothing of them left on the GPU.

Every tensor of the model stays the object it is, and only loses the memory below it, so that what shares memory, as a
head that is tied to the embedding, shares it again afterwards. The addresses are other ones then: graphs that were
captured before must not be run again.
"""

import weakref
from typing import Any

import psutil
import torch
from torch import Tensor, UntypedStorage, nn

from lightvllm.worker.gpu_memory import format_bytes
from lightvllm.worker.memory import use_large_pages


class ParkedWeights:
    """Moves the weights away at once; `restore` brings them back.

    Raises:
        ValueError: the host has not the memory.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        storages = device_storages(model, device)
        size = sum(storage.nbytes() for storage in storages)
        available = psutil.virtual_memory().available
        if size > available:
            raise ValueError(
                f"level: at level 1 the weights, {format_bytes(size)}, go to the host's memory, of which "
                f"{format_bytes(available)} are available; level 2 drops them, and loads them again on waking up"
            )
        self._host: Tensor | None = _pinned(size)
        copies = self._host.split([storage.nbytes() for storage in storages])
        self._copies = list(zip(storages, copies, strict=True))
        for storage, copy in self._copies:
            copy.copy_(_bytes_of(storage, device), non_blocking=True)
        torch.cuda.synchronize(device)
        for storage in storages:
            storage.resize_(0)
        self._device = device

    def restore(self) -> None:
        """Bring the weights back. After it failed it may be called again.

        Raises:
            torch.OutOfMemoryError: the GPU has not the memory any more.
        """
        for storage, copy in self._copies:
            if not storage.nbytes():
                storage.resize_(copy.nbytes)
                _bytes_of(storage, self._device).copy_(copy, non_blocking=True)
        torch.cuda.synchronize(self._device)
        self._copies.clear()
        self._host = None


def device_storages(model: nn.Module, device: torch.device) -> list[UntypedStorage]:
    """The memory below all tensors of a model that are on this kind of device, each piece once.

    Parameters are not all: a layer's product holds tensors of its own.
    """
    found: dict[int, UntypedStorage] = {}
    seen: set[int] = set()
    left: list[Any] = [model]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if value.device.type == device.type and storage.nbytes():
                found[storage.data_ptr()] = storage
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value
        elif isinstance(value, nn.Module) or type(value).__module__.startswith("lightvllm."):
            left += vars(value).values()
    return list(found.values())


def _bytes_of(storage: UntypedStorage, device: torch.device) -> Tensor:
    """# [storage.nbytes()] uint8"""
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)


def _pinned(size: int) -> Tensor:
    """Host memory that a GPU copies from and to at the bus's full rate. PyTorch's own rounds sizes up to powers of two.

    # [size] uint8
    """
    memory = torch.empty(size, dtype=torch.uint8)
    use_large_pages(memory)  # locking small ones, one by one, takes most of the time
    cuda = torch.cuda.cudart()
    torch.cuda.check_error(cuda.cudaHostRegister(memory.data_ptr(), size, 0))
    weakref.finalize(memory, cuda.cudaHostUnregister, memory.data_ptr()).atexit = False
    return memory
