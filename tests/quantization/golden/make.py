"""How the files here were made: each format's own tool packs a small weight, and says what it means.

    python tests/quantization/golden/make.py gptqmodel

in an environment with that tool; its version is in the file's metadata. Run by hand, no test needs the tools.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent
OUTPUTS, INPUTS = 16, 64


def save(name: str, tool: str, config: dict[str, Any], tensors: dict[str, Tensor], meaning: Tensor) -> None:
    """A file with a layer's tensors as the tool writes them, and the weight it makes of them."""
    metadata = {"config": json.dumps(config), "made_by": f"{tool} {importlib.metadata.version(tool)}"}
    tensors = {f"layer.{key}": value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file({**tensors, "meaning": meaning.detach().float().contiguous()}, FOLDER / f"{name}.safetensors", metadata)


def make_linear(seed: int) -> nn.Linear:
    """A layer with random weights."""
    torch.manual_seed(seed)
    layer = nn.Linear(INPUTS, OUTPUTS, bias=False)
    nn.init.normal_(layer.weight, 0.1, 0.5)
    return layer
