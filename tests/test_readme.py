"""What the README and the examples say a user can type, typed."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lightvllm.bench.load.server_process import running_server
from lightvllm.config import DEFAULT_MODEL

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SHELL = [line.partition("#")[0].strip() for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
COMMANDS = [line for line in SHELL if line.startswith("lightvllm ")]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
SERVER_DOCS = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
SERVER_PYTHON = re.findall(r"```python\n(.*?)```", SERVER_DOCS, re.DOTALL)
URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server with the settings of the example."""
    options = yaml.safe_load((ROOT / "examples" / "server" / "server.yaml").read_text(encoding="utf-8"))
    with running_server({name: value for name, value in options.items() if name not in ("host", "port")}) as url:
        yield url


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


def test_the_request_in_the_readme(server: str) -> None:
    [request] = [block for kind, block in BLOCKS if kind == "sh" and block.startswith("curl")]
    answer = json.loads(run(["bash", "-c", request.replace(URL, server)]))
    assert answer["choices"][0]["message"]["content"].startswith("SELECT ")


def test_the_program_in_the_servers_page(server: str) -> None:
    assert SERVER_PYTHON
    for block in SERVER_PYTHON:
        assert "SELECT " in run([sys.executable, "-c", block.replace(URL, server)])


def test_the_example_with_the_official_sdk(server: str) -> None:
    lines = run([sys.executable, str(ROOT / "examples" / "server" / "openai_client.py"), f"{server}/v1"]).splitlines()
    assert lines[0].startswith("SELECT ")
    assert lines[1].startswith("table=")
    assert lines[2] in ("SELECT", "INSERT")
