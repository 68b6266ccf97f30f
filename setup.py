"""Builds the CPU kernels. Without a compiler, or without torch to build against, the package installs without them."""

import sys
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    print("lightvllm: no torch to build the CPU kernels against; install with --no-build-isolation", file=sys.stderr)
    setup()
else:
    setup(
        ext_modules=[
            CppExtension(
                "lightvllm.kernels._cpu",
                sorted(str(path) for path in Path("lightvllm/kernels/cpu").glob("*.cpp")),
                depends=sorted(str(path) for path in Path("lightvllm/kernels/cpu").glob("*.h")),
                extra_compile_args=["-std=c++20", "-O3", "-fno-math-errno", "-Wno-psabi"],
                define_macros=[("TORCH_TARGET_VERSION", "0x020b000000000000")],
                py_limited_api=True,
                optional=True,
            )
        ],
        cmdclass={"build_ext": BuildExtension.with_options(use_ninja=False, no_python_abi_suffix=True)},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
