"""What the pages say a user can type, typed."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks_of, count_outputs, name_of, pages
from tests.docs.run import PROGRAMS, SERVER, commands_of, first_word, is_run, needs_server, run_blocks

BLOCKS = {page: blocks_of(page.read_text(encoding="utf-8")) for page in pages()}
# Folders whose pages have tests of their own: how-to pages are followed in a copy of the repository, where their
# commands run; what translated pages say is parsed, and held against the pages that run here.
HELD_BY = {"docs/how-to": "tests/docs/test_how_to_{}.py", "docs/ko": "tests/examples/test_korean_pages.py"}
RUNNING = [page for page, blocks in BLOCKS.items() if name_of(page.parent) not in HELD_BY and any(map(is_run, blocks))]

# Blocks with a comment `not run: ...` before them, for each page that has some: none comes in unnoticed.
NOT_RUN = {
    "docs/ideas/index.md": 1,
    "docs/quantization.md": 2,
    "docs/server.md": 1,
}
# What a page may show beside code and commands: files, answers, and terminals that show both sides.
SHOWN = {"", "console", "cpp", "diff", "json", "jsonl", "text", "toml", "yaml"}
# Commands that need more than this package: a clone, a network, an environment to change.
NOT_OURS = {"cd", "git", "make", "pip", "source"}


@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_the_blocks_run(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    blocks = BLOCKS[page]
    url = request.getfixturevalue("server") if needs_server(blocks) else SERVER
    outputs = run_blocks(name_of(page), blocks, tmp_path, url)
    for block, output in zip(blocks, outputs, strict=True):
        assert block.output in (None, output), f"{name_of(page)}, line {block.line}: {output}"


def test_there_is_something_to_run() -> None:
    running = {name_of(page) for page in RUNNING}
    assert {"README.md", "docs/server.md", "docs/index.md"} <= running
    assert len([name for name in running if name.startswith("docs/ideas/")]) >= 7


def test_other_pages_have_their_tests() -> None:
    for page in BLOCKS:
        if name_of(page.parent) in HELD_BY:
            assert (ROOT / HELD_BY[name_of(page.parent)].format(page.stem)).is_file(), name_of(page)


def test_the_blocks_that_are_not_run() -> None:
    counts = {name_of(page): sum(block.not_run is not None for block in blocks) for page, blocks in BLOCKS.items()}
    assert {name: count for name, count in counts.items() if count} == NOT_RUN


def test_every_marker_stands_before_a_block() -> None:
    for page, blocks in BLOCKS.items():
        markers = len(re.findall(r"<!-- not run", page.read_text(encoding="utf-8")))
        assert markers == sum(block.not_run is not None for block in blocks), name_of(page)


def test_every_output_is_that_of_a_block_that_runs() -> None:
    for page, blocks in BLOCKS.items():
        of_blocks = [block for block in blocks if block.output is not None]
        assert all(map(is_run, of_blocks)), name_of(page)
        assert len(of_blocks) == count_outputs(page.read_text(encoding="utf-8")), name_of(page)


def test_no_block_runs_under_another_name() -> None:
    for page, blocks in BLOCKS.items():
        for block in blocks:
            assert block.language in {"python", "sh"} | SHOWN, f"{name_of(page)}, line {block.line}"
            if block.language == "sh":
                words = set(map(first_word, commands_of(block)))
                assert words <= {*PROGRAMS, *NOT_OURS}, f"{name_of(page)}, line {block.line}: {words}"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    blocks = [block for blocks in BLOCKS.values() for block in blocks if block.language == "sh"]
    named = {line.split()[1] for block in blocks for line in commands_of(block) if line.startswith("make ")}
    assert named
    assert named <= targets


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    page = "```python\nx = 1\n```\n\n```python\n\nprint(x)\nraise KeyError(x)\n```\n"
    with pytest.raises(AssertionError, match=r'File "docs/a\.md", line 8(?s:.*)KeyError: 1'):
        run_blocks("docs/a.md", blocks_of(page), tmp_path)


def test_a_command_that_fails_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="learned"):
        run_blocks("docs/a.md", blocks_of("```sh\nlightvllm learned\n```\n"), tmp_path)


def test_what_a_block_prints(tmp_path: Path) -> None:
    page = "```python\nprint(1)\n```\n\n```output\n1\n```\n\n<!-- not run: why -->\n```sh\npython -c 'print(2)'\n```\n"
    shown, hidden = blocks_of(page)
    assert (shown.output, hidden.not_run) == ("1\n", "why")
    assert page.splitlines()[slice(*shown.output_lines)] == ["1"]
    assert run_blocks("docs/a.md", [shown, hidden], tmp_path) == ["1\n", ""]
