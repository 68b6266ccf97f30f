"""Following a how-to page: its code blocks with a title are put into a copy of the repository, which then is tried.

A block is a new file, or as a `diff` a change to one that is there. Nothing else is changed, so what a page says is
enough is enough.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "how-to"
_BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A code block with a title.

    Attributes:
        language: "diff" is a change to the file `path`; any other is the whole of it.
        path: relative to the repository.
    """

    language: str
    path: str
    text: str

    @property
    def num_added(self) -> int:
        """The lines it adds."""
        lines = self.text.splitlines()
        return sum(line.startswith("+") for line in lines) if self.language == "diff" else len(lines)


@dataclass(frozen=True)
class Copy:
    """The repository with a page's blocks in place."""

    root: Path
    blocks: list[Block]

    def added(self, folder: str) -> dict[str, int]:
        """What the page puts into a folder: path -> lines added."""
        added: dict[str, int] = {}
        for block in self.blocks:
            if block.path.startswith(f"{folder}/"):
                added[block.path] = added.get(block.path, 0) + block.num_added
        return added

    def run(self, *words: str) -> str:
        """What `python WORDS` prints in the copy."""
        settings = {
            "PYTHONPATH": str(self.root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # they take longer to load than most of these tests take
        }
        environment = {**os.environ, **settings}
        command = [sys.executable, *words]
        result = subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=250, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def num_passed(self, *words: str) -> int:
        """How many tests `pytest WORDS` runs there; none may fail."""
        printed = self.run("-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_timeout", *words)
        summary = re.search(r"^(\d+) passed.* in [\d.]+s", printed, re.MULTILINE)
        assert summary, printed
        return int(summary[1])

    def check_style(self) -> None:
        """What the page shows has the form of the rest."""
        files = sorted(block.path for block in self.blocks if block.path.endswith(".py"))
        self.run("-m", "ruff", "check", "--no-cache", *files)
        self.run("-m", "ruff", "format", "--no-cache", "--check", "--diff", *files)


def titled_blocks(page: str) -> list[Block]:
    """A page's code blocks with a title."""
    return [Block(*found) for found in _BLOCK.findall((PAGES / page).read_text(encoding="utf-8"))]


def follow(page: str, root: Path) -> Copy:
    """Do what the page says in a copy of the repository, made in the empty folder `root`."""
    blocks = titled_blocks(page)
    large = shutil.ignore_patterns("__pycache__", "default_model", "golden")
    for folder in ("lightvllm", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=large)
    (root / "lightvllm" / "default_model").symlink_to(ROOT / "lightvllm" / "default_model")
    shutil.copy(ROOT / "pyproject.toml", root)
    for block in blocks:
        file = root / block.path
        if block.language == "diff":
            file.write_text(changed(file.read_text(encoding="utf-8"), block), encoding="utf-8")
        else:
            assert not file.exists(), f"{block.path} is there already"
            file.write_text(block.text, encoding="utf-8")
    return Copy(root, blocks)


def changed(text: str, block: Block) -> str:
    """A file's text after a change; the lines that the change shows must stand in it together, and once."""
    lines = block.text.splitlines()
    before, after = ("".join(f"{line[1:]}\n" for line in lines if line[:1] != sign) for sign in "+-")
    assert f"\n{text}".count(f"\n{before}") == 1, f"{block.path} has these lines not once:\n{before}"
    return f"\n{text}".replace(f"\n{before}", f"\n{after}")[1:]
