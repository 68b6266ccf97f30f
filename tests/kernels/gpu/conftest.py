"""Where the GPU's kernels are tested: on the GPU where there is one, else Triton's under its interpreter on the CPU."""

import os

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()

if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when it is imported

cuda_only = pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device")


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if HAS_CUDA else "cpu"


@pytest.fixture(autouse=True)
def isa() -> None:
    """In the place of the CPU kernels' fixture, which runs each test once for each instruction set."""
