"""What the README and the examples say a user can type, typed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightvllm.config import DEFAULT_MODEL

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SHELL = [line.partition("#")[0].strip() for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
COMMANDS = [line for line in SHELL if line.startswith("lightvllm ")]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]


def run(command: list[str]) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_readme_has_what_these_tests_run() -> None:
    assert len(COMMANDS) >= 4
    assert len(PYTHON) >= 2


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str) -> None:
    words = [str(DEFAULT_MODEL) if word == "path/to/checkpoint" else word for word in shlex.split(command)]
    if words[1] == "chat":  # it reads its questions from standard input, which is empty here
        words += ["--max-tokens", "5"]
    assert run(words) or words[1] == "chat"


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python(block: str) -> None:
    run([sys.executable, "-c", block])


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples(example: Path) -> None:
    assert run([sys.executable, str(example)])


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for line in SHELL if line.startswith("make ") for word in line.split()[1:2]}
    assert named
    assert named <= targets
