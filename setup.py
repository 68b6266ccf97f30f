"""Builds the CPU kernels. Without a compiler, or without torch to build against, the package installs without them."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    print("lightvllm: no torch to build the CPU kernels against; install with --no-build-isolation", file=sys.stderr)
    setup()
else:

    class ParallelBuild(BuildExtension):
        """Compiles as many files at the same time as there are cores."""

        def build_extension(self, extension):
            compile_all = self.compiler.compile

            def compile_each(sources, *args, **options):
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    objects = pool.map(lambda source: compile_all([source], *args, **options), sources)
                    return [path for paths in objects for path in paths]

            self.compiler.compile = compile_each
            super().build_extension(extension)

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
        cmdclass={"build_ext": ParallelBuild.with_options(use_ninja=False, no_python_abi_suffix=True)},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
