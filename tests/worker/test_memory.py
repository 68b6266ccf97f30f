"""What an engine takes of the system's memory, and gives back."""

import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lightvllm.worker.memory import make_resident, use_large_pages

SCRIPT = """
import sys
import psutil
from lightvllm import LLM, SamplingParams
process = psutil.Process()
resident = []
for _ in range(3):
    options = {"device": "cpu", "max_model_len": 200, "kv_cache_memory_bytes": 60_000_000}
    with LLM(sys.argv[1], skip_tokenizer_init=True, **options) as llm:
        llm.generate([[i % 299, *range(150)] for i in range(200)], SamplingParams(max_tokens=2), use_tqdm=False)
        used = process.memory_info().rss
    resident.append(process.memory_info().rss)
    assert used - resident[-1] > 30_000_000, (used, resident)
assert resident[-1] - resident[0] < 20_000_000, resident
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as Linux counts it")
def test_close_gives_memory_back(checkpoint) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(checkpoint("qwen3").path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def is_filling() -> bool:
    return any(thread.name == "kv-cache-pages" for thread in threading.enumerate())


@pytest.mark.skipif(sys.platform != "linux", reason="pages are asked for as Linux has it")
def test_pages_are_there_before_they_are_written() -> None:
    size = 50_000_000
    tensors = [torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8) for _ in range(2)]
    before = resident_bytes()
    make_resident(tensors)
    deadline = time.monotonic() + 60
    while is_filling() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert resident_bytes() - before > 1.9 * size
    assert not any(tensor.any() for tensor in tensors)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are asked for as Linux has it")
def test_nobody_fills_what_is_gone() -> None:
    tensors = [torch.from_numpy(np.zeros(8 << 30, dtype=np.uint8))]
    make_resident(tensors)
    tensors.clear()
    deadline = time.monotonic() + 60
    while is_filling() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_filling()


@pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked for as Linux has it")
def test_large_pages_are_asked_for() -> None:
    """The system marks the tensor's part of the memory: "hg" among its flags."""
    tensor = torch.empty(64 << 20, dtype=torch.uint8)
    use_large_pages(tensor)
    middle = tensor.data_ptr() + tensor.nbytes // 2
    is_ours, flags = False, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("VmFlags:") and is_ours:
            flags = line
        elif "-" in line.split()[0] and not line.split()[0].endswith(":"):
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            is_ours = start <= middle < end
    assert " hg" in flags, flags
    tensor.fill_(7)
    assert int(tensor[::4096].sum()) == 7 * (tensor.nbytes // 4096)
