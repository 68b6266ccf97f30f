"""The repository's Markdown, read: its pages, their code blocks, and their links to functions.

A block that cannot run in the tests has a comment on the line before it, with the reason:

    <!-- not run: a server that stays up -->

A block of the language `output`, right behind one that runs, is what that one prints.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
# What is made here, and holds other people's pages.
_MADE = {"build", "dist", "runs"}

_MARKER = re.compile(r"<!-- not run: (.+) -->\s*")
_TITLE = re.compile(r'title="([^"]+)"')
# `Scheduler.schedule` ([lightvllm/engine/scheduler.py:138](../lightvllm/engine/scheduler.py#L138))
CODE_LINK = re.compile(
    r"`(?P<name>[\w.]+)` \(\[(?P<path>[\w./]+):(?P<line>\d+)\]\((?P<up>[./]*)(?P=path)#L(?P<anchor>\d+)\)\)"
)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        title: of a block that is a file: its path. Such a block is not run by itself.
        line: of the page, where its code begins; the first is 1.
        not_run: why it is not run; None if it is.
        output: what it prints, if the page says so.
        output_lines: where the page says so: [first, last) of the output's own lines, from 0.
    """

    language: str
    title: str | None
    code: str
    line: int
    not_run: str | None
    output: str | None
    output_lines: tuple[int, int]


def markdown_files() -> list[Path]:
    """All of the repository's."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in _MADE]
    return sorted([*ROOT.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))])


def pages() -> list[Path]:
    """Those that tell a reader what to type."""
    return [path for path in markdown_files() if path.parent == ROOT or path.is_relative_to(ROOT / "docs")]


def name_of(page: Path) -> str:
    """As people say it: docs/server.md."""
    return page.relative_to(ROOT).as_posix()


def parse(text: str) -> list[Token]:
    """The tokens of a page in CommonMark, with tables."""
    return MarkdownIt("commonmark").enable("table").parse(text)


def blocks_of(text: str) -> list[Block]:
    """A page's code blocks, but for those that are the output of another."""
    found = []
    tokens = [None, *parse(text), None]
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if token is None or token.type != "fence" or token.map is None or token.info == "output":
            continue
        marker = _MARKER.fullmatch(before.content) if before is not None and before.type == "html_block" else None
        output, lines = None, (0, 0)
        if after is not None and after.type == "fence" and after.info == "output" and after.map is not None:
            output, lines = after.content, (after.map[0] + 1, after.map[1] - 1)
        language, _, options = token.info.partition(" ")
        title = _TITLE.search(options)
        reason = None if marker is None else marker[1]
        found.append(Block(language, title and title[1], token.content, token.map[0] + 2, reason, output, lines))
    return found


def count_outputs(text: str) -> int:
    """Blocks of the language `output`: each must be that of a block."""
    return sum(token.type == "fence" and token.info == "output" for token in parse(text))


def definition_line(path: Path, name: str) -> int:
    """Where a function, class, method or module's variable is defined; in C++, a function of the file's own.

    Raises:
        ValueError: it is not, or more than once.
    """
    lines = list(_definitions(path, name))
    if len(lines) != 1:
        raise ValueError(f"{name} is defined {len(lines)} times in {path}")
    return lines[0]


def _definitions(path: Path, name: str) -> Iterator[int]:
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        # A definition begins at the margin; a call does not.
        for number, line in enumerate(source.splitlines(), start=1):
            if re.match(rf"[A-Za-z][\w:<>&* ]*\b{re.escape(name)}\(", line) and not line.endswith(";"):
                yield number
        return
    *outer, last = name.split(".")
    body = ast.parse(source).body
    for part in outer:
        classes = [node for node in body if isinstance(node, ast.ClassDef) and node.name == part]
        body = [child for node in classes for child in node.body]
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names = [node.name]
        else:
            names = [ast.unparse(target) for target in node.targets] if isinstance(node, ast.Assign) else []
        if last in names:
            yield node.lineno
