"""From starting the program to its first token, each time in a process of its own."""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Startup:
    """Medians over the repeats, in seconds.

    Attributes:
        first_token: from starting `lightvllm generate` to its first token.
        import_torch: from starting Python to the end of `import torch`: the part that is not ours.
    """

    first_token: float
    import_torch: float
    repeats: int


def measure_startup(arguments: Sequence[str] = (), repeats: int = 5) -> Startup:
    """Take turns between the two, after one run of each that fills the file cache.

    Args:
        arguments: further arguments of `lightvllm generate`, such as --model.

    Raises:
        ValueError: `lightvllm generate` failed, with its own words.
    """
    if repeats < 1:
        raise ValueError(f"repeats: {repeats} is out of range, expected at least 1")
    generate = ["-m", "lightvllm.cli", "generate", "--temperature", "0", "--max-tokens", "1", "--json", "Hello"]
    # The one line is printed when the one token is there; what the process takes to clean up comes after.
    first_token, import_torch = [], []
    for _ in range(1 + repeats):
        first_token.append(_seconds_to_first_line([sys.executable, *generate, *arguments]))
        import_torch.append(_seconds_to_first_line([sys.executable, "-c", "import torch; print(flush=True)"]))
    return Startup(statistics.median(first_token[1:]), statistics.median(import_torch[1:]), repeats)


def _seconds_to_first_line(command: list[str]) -> float:
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
        _, errors = process.communicate()
    if process.returncode or not line:
        reason = errors.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise ValueError(f"{command[3]} did not start: {reason[0].removeprefix('error: ')}")
    return seconds
