"""The programs in examples/ run."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.docs.run import environment

EXAMPLES = ROOT / "examples"


def run(*command: str) -> str:
    result = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples(example: Path) -> None:
    assert run(sys.executable, str(example))


def test_the_example_with_the_official_sdk(server: str) -> None:
    lines = run(sys.executable, str(EXAMPLES / "server" / "openai_client.py"), f"{server}/v1").splitlines()
    assert lines[0].startswith("SELECT ")
    assert lines[1].startswith("table=")
    assert lines[2] in ("SELECT", "INSERT")
