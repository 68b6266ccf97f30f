"""Where the GPU's kernels are tested: on the GPU where there is one, else Triton's under its interpreter on the CPU."""

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()

if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when it is imported

if not HAS_CUDA and find_spec("triton"):
    from triton.runtime import interpreter

    def patch_tensor(tensor: Any, scope: Any, patch: Any = interpreter._patch_lang_tensor) -> None:
        """The interpreter's numbers are arrays of one element, which numpy 2.4 takes for a loop's bound no more."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_tensor

cuda_only = pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if HAS_CUDA else "cpu"


@pytest.fixture(autouse=True)
def isa() -> None:
    """In the place of the CPU kernels' fixture, which runs each test once for each instruction set."""
