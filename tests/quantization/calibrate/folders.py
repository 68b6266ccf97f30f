"""Reading a compressed-tensors folder again, written from the format's definition and not with the package's code."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, sharded or not."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def unpack(packed: torch.Tensor, shape: list[int], bits: int = 4) -> np.ndarray:
    """Fields of 32-bit words, the first in the lowest bits, each plus 2^(bits - 1)."""
    words = packed.numpy().astype(np.int64) & 0xFFFFFFFF
    per_word = 32 // bits
    values = np.empty(shape, dtype=np.int64)
    for row in range(shape[0]):
        for i in range(shape[1]):
            field = words[row, i // per_word] >> (bits * (i % per_word))
            values[row, i] = (field & (2**bits - 1)) - 2 ** (bits - 1)
    return values


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """A folder's tensors as a plain checkpoint has them, quantized ones in float32."""
    tensors = read_tensors(folder)
    plain = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        scale = tensors.get(f"{module}.weight_scale")
        if scale is None:
            plain[name] = tensor
        elif leaf in ("weight", "weight_packed"):
            shape = tensors[f"{module}.weight_shape"].tolist() if leaf == "weight_packed" else list(tensor.shape)
            values = torch.from_numpy(fast_unpack(tensor, shape)) if leaf == "weight_packed" else tensor
            groups = values.float().view(shape[0], scale.shape[1], -1)
            plain[f"{module}.weight"] = (groups * scale.float().unsqueeze(2)).view(shape)
        elif leaf == "bias":
            plain[name] = tensor
    return plain


def fast_unpack(packed: torch.Tensor, shape: list[int]) -> np.ndarray:
    """`unpack` of 4 bits, all at once."""
    words = packed.numpy().astype(np.int64)[:, :, None] >> (4 * np.arange(8))
    return ((words & 15) - 8).reshape(shape).astype(np.int8)


def write_plain(source: Path, folder: Path) -> None:
    """The quantized folder as a plain float32 checkpoint."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    config |= {"dtype": "float32", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: tensor.float().contiguous() for name, tensor in dequantized(source).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
