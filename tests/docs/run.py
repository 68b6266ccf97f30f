"""Runs the code blocks of a page as a reader would, top to bottom: Python in one session, commands in a shell."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lightvllm.config import DEFAULT_MODEL
from tests.docs.pages import ROOT, Block

SECONDS = 120  # that a page may take; a few are what one should
# Where the pages say that the server is.
SERVER = "http://127.0.0.1:8000"
CHECKPOINT = "path/to/checkpoint"
# The first words of commands that run; curl, because it asks our server.
PROGRAMS = ("lightvllm", "python", "curl")

_CHILD = f"""
import contextlib, faulthandler, io, json, sys
faulthandler.dump_traceback_later({SECONDS}, exit=True)
namespace = {{"__name__": "__main__"}}
for message in sys.stdin:
    line, source = json.loads(message)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile("\\n" * (line - 1) + source, sys.argv[1], "exec"), namespace)
    print(json.dumps(output.getvalue()), flush=True)
"""


@contextlib.contextmanager
def python_session(page: str, folder: Path) -> Iterator[Callable[[int, str], str]]:
    """A process that runs one block after the other, each with the names of those before.

    Args:
        page: its name, for tracebacks: their lines are the page's.
        folder: to run in.

    Yields:
        run(line, source): what the block prints. It raises an AssertionError, with the traceback, if the block raises.
    """
    command = [sys.executable, "-c", _CHILD, page]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=folder, env=environment(), stdin=pipe, stdout=pipe, stderr=errors, text=True
        ) as child,
    ):

        def run(line: int, source: str) -> str:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps([line, source]) + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
            if not answer:
                child.wait()
                errors.seek(0)
                raise AssertionError(errors.read()[-3000:])
            return json.loads(answer)

        try:
            yield run
        finally:
            child.kill()


def environment() -> dict[str, str]:
    """With this checkout's package and its programs before any other."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def commands_of(block: Block) -> list[str]:
    """The commands of a shell block: one a line, but for what follows a backslash or stands in curl's quotes."""
    if first_word(block.code) == "curl":
        return [block.code]
    lines = block.code.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def first_word(command: str) -> str:
    """Of a command: the program."""
    return command.split()[0]


def is_run(block: Block) -> bool:
    """Whether anything of the block runs."""
    if block.not_run is not None or block.title is not None or block.language not in ("python", "sh"):
        return False
    return block.language == "python" or any(first_word(command) in PROGRAMS for command in commands_of(block))


def needs_server(blocks: list[Block]) -> bool:
    """Whether a block that runs speaks to the server."""
    return any(SERVER in block.code for block in blocks if is_run(block))


def run_blocks(page: str, blocks: list[Block], folder: Path, server: str = SERVER) -> list[str]:
    """Run a page's blocks in a folder that has the repository's examples; what each prints, "" for those not run.

    Args:
        server: takes the place of the pages' address.

    Raises:
        AssertionError: a block failed; with what it said.
    """
    for name in ("examples", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    outputs = []
    with python_session(page, folder) as run_python:
        for block in blocks:
            code = block.code.replace(SERVER, server).replace(CHECKPOINT, str(DEFAULT_MODEL))
            if not is_run(block):
                outputs.append("")
            elif block.language == "python":
                outputs.append(run_python(block.line, code))
            else:
                commands = commands_of(dataclasses.replace(block, code=code))
                outputs.append(
                    "".join(_run(command, folder) for command in commands if first_word(command) in PROGRAMS)
                )
    return outputs


def _run(command: str, folder: Path) -> str:
    word = first_word(command)
    if word == "curl":  # which else calls an error's page a success
        command = command.replace("curl", "curl -sS --fail-with-body", 1)
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-1000:]}{result.stderr[-2000:]}"
    return result.stdout
