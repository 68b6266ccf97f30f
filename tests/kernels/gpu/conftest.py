"""Where the GPU's kernels are tested: on the GPU where there is one, else Triton's under its interpreter on the CPU."""

import os
from importlib.util import find_spec
from pathlib import Path
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

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if HAS_CUDA else "cpu"


@pytest.fixture(autouse=True)
def isa() -> None:
    """In the place of the CPU kernels' fixture, which runs each test once for each instruction set."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Triton's interpreter takes a second for what a GPU does in no time: without one, three cases of five will do."""
    if torch.cuda.is_available():
        return
    for name in ("test_paged_prefill", "test_paged_decode", "test_rows_without_a_choice"):
        cases = [item for item in items if item.path.parent == HERE and item.name.startswith(f"{name}[")]
        for index, case in enumerate(cases):
            if index % 5 in (1, 3):  # of which no parameter's values come around in step
                case.add_marker(pytest.mark.skip(reason="takes the interpreter long; on a GPU all run"))
