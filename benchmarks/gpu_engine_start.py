"""From starting Python to the first tokens, in new processes; what they read is in the file cache."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Prints when each was done, by the clock that all processes share.
PROGRAM = """
import json, sys, time
import torch
times = {"import_torch": time.time()}
from lightvllm import LLM, SamplingParams
llm = LLM(sys.argv[1], **json.loads(sys.argv[2]))
times["load"] = time.time()
def generate(count):
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    llm.generate([[1, 2, 3, 4, 5]], params, use_tqdm=False)
generate(1)
times["first_token"] = time.time()
generate(2)
times["second_token"] = time.time()
print(json.dumps(times), flush=True)
"""


def measure_start(folder: Path, options: dict[str, Any], repeats: int, timeout: float) -> dict[str, float]:
    """Seconds from the start of the process until each is done, medians; "cold" is the very first first token.

    Raises:
        ValueError: the program failed, with its last words.
    """
    runs = [_start(folder, options, timeout) for _ in range(repeats + 1)]
    warm = runs[1:]
    return {name: statistics.median(run[name] for run in warm) for name in runs[0]} | {"cold": runs[0]["first_token"]}


def _start(folder: Path, options: dict[str, Any], timeout: float) -> dict[str, float]:
    command = [sys.executable, "-c", PROGRAM, str(folder), json.dumps(options)]
    start = time.time()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"no token after {timeout:g} s") from None
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    times: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: seconds - start for name, seconds in times.items()}
