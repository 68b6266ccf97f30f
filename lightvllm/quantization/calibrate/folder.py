"""Writing a checkpoint folder that appears when it is complete, and not before.

Tensors go into safetensors files as they come, so that no more than one file's are held in memory. What they are called
and how 4-bit values are packed is compressed-tensors' (its compressors/pack_quantized and naive_quantized).
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 2**30
# What a checkpoint folder may hold besides: weights in other formats, which would be those from before.
_NOT_COPIED = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".onnx",
               ".h5", ".msgpack")  # fmt: skip


class CheckpointFolder:
    """A folder that is being written, as a context manager: an error or an interrupt leaves nothing behind.

    Args:
        path: where it appears at the end.
        overwrite: whether it may take the place of a checkpoint that is there.

    Raises:
        ValueError: the path is taken, or is nowhere.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        self.path = path.absolute()
        if not self.path.parent.is_dir():
            raise ValueError(f"out: there is no folder {str(path.parent)!r} to write {path.name!r} into")
        if self.path.exists() and not overwrite:
            raise ValueError(f"out: {str(path)!r} is there already; overwrite replaces it")
        if self.path.exists() and not (self.path / "config.json").is_file():
            raise ValueError(f"out: {str(path)!r} has no config.json: it is no checkpoint folder to overwrite")
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self._pending: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []  # the names in each file
        self._num_bytes = 0

    def __enter__(self) -> "CheckpointFolder":
        self._partial.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
            return
        self._write_shard()
        self._name_shards()
        if self.path.exists():
            before = self.path.with_name(f".{self.path.name}.{os.getpid()}.before")
            self.path.rename(before)
            self._partial.rename(self.path)
            shutil.rmtree(before)
        else:
            self._partial.rename(self.path)

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add tensors under their names in the checkpoint."""
        size = sum(map(num_bytes, tensors.values()))
        if self._pending and sum(map(num_bytes, self._pending.values())) + size > SHARD_BYTES:
            self._write_shard()
        self._pending |= {name: tensor.contiguous() for name, tensor in tensors.items()}
        self._num_bytes += size

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a file beside the tensors."""
        (self._partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def copy_others(self, source: Path) -> None:
        """Copy what else a checkpoint folder has: tokenizer, chat template, generation config, licence."""
        for file in sorted(source.iterdir()):
            if file.is_file() and not file.name.endswith(_NOT_COPIED) and not (self._partial / file.name).exists():
                shutil.copyfile(file, self._partial / file.name)

    def _write_shard(self) -> None:
        if self._pending:
            file = self._partial / f"{len(self._shards)}.safetensors"
            file.touch()
            mode = file.stat().st_mode
            save_file(self._pending, file, metadata={"format": "pt"})
            file.chmod(mode)  # it would be readable for its owner alone
            self._shards.append(list(self._pending))
            self._pending = {}

    def _name_shards(self) -> None:
        count = len(self._shards)
        if count == 1:
            (self._partial / "0.safetensors").rename(self._partial / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for index, names in enumerate(self._shards):
            file = f"model-{index + 1:05}-of-{count:05}.safetensors"
            (self._partial / f"{index}.safetensors").rename(self._partial / file)
            weight_map |= dict.fromkeys(names, file)
        index_file = {"metadata": {"total_size": self._num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        self.write_json("model.safetensors.index.json", index_file)


def quantized_tensors(module: str, values: Tensor, scales: Tensor, bits: int) -> dict[str, Tensor]:
    """The tensors of one quantized linear layer: of 8 bits as "int-quantized" has them, of 4 as "pack-quantized".

    Args:
        values: [outputs, inputs] int8
        scales: [outputs, groups], in the type they are stored in.
    """
    if bits == 8:
        return {f"{module}.weight": values, f"{module}.weight_scale": scales}
    return {
        f"{module}.weight_packed": pack_nibbles(values),
        f"{module}.weight_scale": scales,
        f"{module}.weight_shape": torch.tensor(values.shape),
    }


def pack_nibbles(values: Tensor) -> Tensor:
    """Eight values an int32, each plus 8, the first in the lowest bits: [outputs, inputs] -> [outputs, inputs / 8]"""
    low, high = (values + 8).to(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
    return (low | high << 4).contiguous().view(torch.int32)


def num_bytes(tensor: Tensor) -> int:
    """The size of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
