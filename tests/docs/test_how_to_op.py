"""docs/how-to/op.md, followed: the op's twin is compiled, and gives what its reference gives."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from lightvllm import kernels
from lightvllm.kernels.isa import available_isas
from tests.docs.how_to import ROOT, Copy, follow

COMPILER = shutil.which(os.environ.get("CXX", "c++"))
CAN_COMPILE = COMPILER is not None and kernels.COMPILED and sys.platform == "linux"


@pytest.mark.skipif(not CAN_COMPILE, reason="no compiler, or the CPU kernels were not built")
def test_the_page(tmp_path: Path) -> None:
    copy = follow("op.md", tmp_path)
    copy.check_style()
    added = copy.added("lightvllm")
    assert added.pop("lightvllm/kernels/cpu/gelu.cpp") > 0
    assert sorted(added) == ["lightvllm/kernels/__init__.py", "lightvllm/kernels/reference.py"]
    assert added["lightvllm/kernels/__init__.py"] == 2
    compile_twin(copy, "gelu")
    # Types, sizes and numbers of rows; company; and three others. All of them for each instruction set.
    assert copy.num_passed("tests/kernels/test_gelu.py") == (2 * 6 * 3 + 2 + 3) * len(available_isas())


def compile_twin(copy: Copy, name: str) -> None:
    """Compile this one file, with the flags of setup.py but for the level: compiling them all again takes minutes.

    It is linked to the library of the others, whose threads it uses, and lies beside it, where the package looks.
    """
    folder = copy.root / "lightvllm" / "kernels"
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    flags = ["-std=c++20", "-fno-math-errno", "-Wno-psabi"]
    assert all(f'"{flag}"' in setup for flag in flags)
    macro = "TORCH_TARGET_VERSION", "0x020b000000000000"
    assert f'("{macro[0]}", "{macro[1]}")' in setup
    includes = [f"-I{path}" for path in include_paths()]
    linked = [f"-L{folder}", "-l:_cpu.so", "-Wl,-rpath,$ORIGIN"]
    command = [COMPILER, *flags, "-O1", "-Werror", "-fPIC", "-shared", f"-D{'='.join(macro)}", *includes]
    command += [str(folder / "cpu" / f"{name}.cpp"), "-o", str(folder / f"_cpu_{name}.so"), *linked]
    result = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert result.returncode == 0, result.stderr
