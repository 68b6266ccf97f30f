"""What a measurement ran on, and what the engine would use there: versions, processor, memory, kernels."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from lightvllm import __version__, kernels
from lightvllm.attention.registry import BACKENDS, attention_backend, why_not
from lightvllm.kernels import gpu
from lightvllm.kernels.isa import available_isas, current_isa
from lightvllm.model_config import ModelConfig
from lightvllm.models.bare import torch_dtype

PACKAGES = ("torch", "triton", "numpy", "safetensors", "tokenizers", "transformers")
# The extensions that decide which matrix kernels a processor can run.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve")
DTYPES = ("float32", "bfloat16", "float16")


def describe_machine(model: ModelConfig | None = None) -> dict[str, Any]:
    """Everything, as JSON has it; memory in bytes.

    Args:
        model: attention is chosen to fit it; without one there is nothing to say of attention.
    """
    memory = psutil.virtual_memory()
    gpus = [_gpu(index) for index in range(torch.cuda.device_count())]
    devices = [torch.device(name) for name in (["cuda"] if gpus else []) + ["cpu"]]
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "cpu": {
            "name": _cpu_name(),
            "features": _cpu_features(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "memory": {"total": memory.total, "available": memory.available},
        "gpus": gpus,
        "cpu_kernels": {
            "compiled": kernels.COMPILED,
            "isa": current_isa(),
            "best_isa": (available_isas() or (None,))[-1],
        },
        "gpu_kernels": {"compiled": gpu.load_compiled(), "triton": gpu.has_triton()} if gpus else None,
        "attention": {str(device): _attention(device, model) for device in devices if model},
        "linear": {str(device): {dtype: _linear(device, dtype) for dtype in DTYPES} for device in devices},
    }


def versions() -> dict[str, str | None]:
    """LightvLLM, Python and the packages that matter; None for one that is not installed."""
    found: dict[str, str | None] = {"lightvllm": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _attention(device: torch.device, model: ModelConfig) -> dict[str, str | None]:
    """Backend -> None where it can run, else why not; "auto" -> what that is."""
    dtype = torch_dtype("auto", model)
    reasons = {name: why_not(name, device, dtype, model, is_int8=False) for name in BACKENDS}
    return {"auto": attention_backend("auto", device, dtype, model).__name__, **reasons}


def _linear(device: torch.device, dtype: str) -> str:
    return "packed weights" if kernels.has_fast_linear(device, getattr(torch, dtype)) else "plain weights"


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
        "cuda": torch.version.cuda,
    }


def _cpu_name() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_features() -> list[str] | None:
    """None where the operating system has no /proc/cpuinfo to read them from."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            found = set(line.partition(":")[2].split())
            return [feature for feature in FEATURES if feature in found]
    return None


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
