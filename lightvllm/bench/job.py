"""A part of a measurement in a process of its own: a job goes in as JSON, and a result comes back. Imports no torch."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Job = TypeVar("Job")


def run_job(
    module: str, job: dict[str, Any], work: Path, cwd: Path | None = None, timeout: float | None = None
) -> dict[str, Any]:
    """Run a module whose main is `serve_job`; the fields of the result.

    Args:
        job: the fields of the module's job.
        work: folder for what passes between the processes.
        cwd: folder in which it finds the package; None for this process's.
        timeout: seconds after which it is ended; None for no limit.

    Raises:
        ValueError: it failed, with its last words, or took too long.
    """
    job_file, result_file = work.resolve() / "job.json", work.resolve() / "result.json"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", module, str(job_file), str(result_file)]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    try:
        done = subprocess.run(command, cwd=cwd, timeout=timeout, check=False, **pipes)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{module}: no result after {timeout:g} s") from None
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ValueError(words[-1])
    result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
    return result


def serve_job(job_type: Callable[..., Job], measure: Callable[[Job], Any]) -> int:
    """Do what the file named first on the command line says, and write the result to the second; the exit code."""
    job_file, result_file = map(Path, sys.argv[1:])
    try:
        result = measure(job_type(**json.loads(job_file.read_text(encoding="utf-8"))))
    except ValueError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    result_file.write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")
    return 0
