"""The backends on a GPU are tested where the kernels are, see tests/kernels/gpu/conftest.py."""

from tests.kernels.gpu.conftest import device

__all__ = ["device"]
