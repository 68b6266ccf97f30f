"""The CUDA sources compile for each architecture without PyTorch and fit the registers of the one they are tuned to."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lightvllm.kernels

SOURCES = sorted((Path(lightvllm.kernels.__file__).parent / "cuda").glob("*.cu"))
ARCHITECTURES = ["80", "89", "90a", "100"]
TUNED_FOR = "90a"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_sources_compile_for_every_architecture(tmp_path: Path) -> None:
    """Down to machine code. A register array that is indexed by what varies, or too many of them, end in memory."""

    def complaints(source: Path) -> list[str]:
        targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in ARCHITECTURES]
        command = ["nvcc", "-std=c++17", "-fatbin", *targets, "-Xptxas", "-v", "-o", tmp_path / source.stem, source]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return [done.stderr]
        reports = done.stderr.split("Compiling entry function")[1:]
        kernels = [report for report in reports if f"for 'sm_{TUNED_FOR}'" in report.partition("\n")[0]]
        assert kernels, "ptxas said nothing"
        return [kernel for kernel in kernels if "0 bytes stack frame, 0 bytes spill stores" not in kernel]

    assert SOURCES
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip([source.name for source in SOURCES], pool.map(complaints, SOURCES), strict=True))
    assert not {name: texts for name, texts in found.items() if texts}
