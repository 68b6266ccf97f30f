"""Builds the kernels. Without a compiler, or without torch to build against, the package installs without them.

The CUDA kernels are built where torch is a build with CUDA and nvcc is found: for the GPUs of this machine, where it
has none for those of `ARCHITECTURES`, or for what TORCH_CUDA_ARCH_LIST names.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError:
    print("lightvllm: no torch to build the CPU kernels against; install with --no-build-isolation", file=sys.stderr)
    setup()
    sys.exit()

ARCHITECTURES = "8.0 8.9 9.0a 10.0+PTX"  # A100, L40S and RTX 4090, H100 and H200, B200 and what comes after it
# torch's build takes the conversions between CUDA's number types away; the kernels use them.
CONVERSIONS = [
    f"-U__CUDA_NO_{name}__"
    for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS")
]
COMMON = {
    "define_macros": [("TORCH_TARGET_VERSION", "0x020b000000000000")],
    "py_limited_api": True,
    "optional": True,
}


class ParallelBuild(BuildExtension):
    """Runs as many compilers at the same time as there are cores."""

    def build_extension(self, extension):
        compile_all, spawn = self.compiler.compile, self.compiler.spawn

        def compile_at_once(*args, **options):
            commands = []
            self.compiler.spawn = commands.append
            objects = compile_all(*args, **options)
            self.compiler.spawn = spawn
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(spawn, commands))
            return objects

        self.compiler.compile = compile_at_once
        try:
            super().build_extension(extension)
        finally:
            self.compiler.compile, self.compiler.spawn = compile_all, spawn


def sources(folder, *patterns):
    return sorted(str(path) for pattern in patterns for path in Path("lightvllm/kernels", folder).glob(pattern))


def why_no_cuda():
    if not torch.version.cuda or not CUDA_HOME or not (nvcc := Path(CUDA_HOME, "bin", "nvcc")).exists():
        return "no nvcc, or a torch without CUDA"
    release = re.search(r"release (\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if release and release[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {release[1]}, torch of {torch.version.cuda}"
    return None


def architectures():
    if not torch.cuda.is_available():
        return ARCHITECTURES
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return " ".join(f"{major}.{minor}" + "a" * ((major, minor) == (9, 0)) for major, minor in sorted(found))


def cuda_extensions():
    if reason := why_no_cuda():
        print(f"lightvllm: the CUDA kernels are not built: {reason}", file=sys.stderr)
        return []
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", architectures())
    return [
        CUDAExtension(
            "lightvllm.kernels._cuda",
            sources("cuda", "*.cpp", "*.cu"),
            depends=sources("cuda", "*.h"),
            extra_compile_args={"cxx": ["-std=c++20", "-O2"], "nvcc": ["-std=c++17", "-O3", *CONVERSIONS]},
            **COMMON,
        )
    ]


setup(
    ext_modules=[
        CppExtension(
            "lightvllm.kernels._cpu",
            sources("cpu", "*.cpp"),
            depends=sources("cpu", "*.h"),
            extra_compile_args=["-std=c++20", "-O3", "-fno-math-errno", "-Wno-psabi"],
            **COMMON,
        ),
        *cuda_extensions(),
    ],
    cmdclass={"build_ext": ParallelBuild.with_options(use_ninja=False, no_python_abi_suffix=True)},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
