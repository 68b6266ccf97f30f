"""The Korean pages: in Korean, and what they name of the program is there, letter for letter."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from lightvllm.cli.main import build_parser

ROOT = Path(__file__).parent.parent.parent
KOREAN = ROOT / "docs" / "ko"
PAGES = sorted(KOREAN.glob("*.md"))
TROUBLES = (KOREAN / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\| `([^`]+)`", TROUBLES, re.MULTILINE)


def texts_of_the_program() -> list[str]:
    """Every string of its source, with … where a value comes in."""
    found = []
    for path in [ROOT / "setup.py", *(ROOT / "lightvllm").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_there_are_pages() -> None:
    assert {page.stem for page in PAGES} >= {"index", "life-of-a-request", "ideas", "quantization", "troubleshooting"}
    for page in PAGES:
        assert len(re.findall("[가-힣]", page.read_text(encoding="utf-8"))) > 300, page.name


def test_the_messages_are_the_program_s() -> None:
    texts = texts_of_the_program()
    assert len(MESSAGES) > 10
    assert [message for message in MESSAGES if not any(message in text for text in texts)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_flags_that_are_named(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:lightvllm|examples|docs)/[\w./]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands += re.findall(r"`(lightvllm [^`…]+)`", text)
    for command in commands:
        if command.startswith("lightvllm "):
            build_parser().parse_args(shlex.split(command, comments=True)[1:])


def test_the_program_is_the_readme_s() -> None:
    """Which the README's tests run."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    start = (KOREAN / "index.md").read_text(encoding="utf-8")
    [program] = re.findall(r"```python\n.*?```", start, re.DOTALL)
    assert program in readme
