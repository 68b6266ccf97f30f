"""Brings the pages up to date: lines of functions, tables of settings and metrics, what blocks of code print.

python -m tests.docs.refresh              # lines and tables
python -m tests.docs.refresh --outputs    # and run the blocks whose output a page shows
"""

import argparse
import contextlib
import re
import tempfile
from pathlib import Path

from lightvllm.bench.load.server_process import running_server
from tests.docs.pages import CODE_LINK, ROOT, blocks_of, definition_line, name_of, pages
from tests.docs.run import SERVER, needs_server, run_blocks
from tests.docs.tables import all_tables

_TABLE = re.compile(r"(<!-- table: (?P<name>.+) -->\n\n)(?:\|.*\n)*\n?(<!-- end of table -->)")


def with_lines(text: str) -> str:
    """The page with each function's line as it is now."""

    def current(link: re.Match[str]) -> str:
        line = definition_line(ROOT / link["path"], link["name"])
        return f"`{link['name']}` ([{link['path']}:{line}]({link['up']}{link['path']}#L{line}))"

    return CODE_LINK.sub(current, text)


def with_tables(text: str) -> str:
    """The page with each table as the code has it now."""
    if not _TABLE.search(text):
        return text
    tables = all_tables()
    return _TABLE.sub(lambda found: f"{found[1]}{tables[found['name']]}\n\n{found[3]}", text)


def with_outputs(page: Path, text: str) -> str:
    """The page with what its blocks print now, where it shows that."""
    blocks = blocks_of(text)
    if all(block.output is None for block in blocks):
        return text
    server = running_server({}) if needs_server(blocks) else contextlib.nullcontext(SERVER)
    with tempfile.TemporaryDirectory() as folder, server as url:
        outputs = run_blocks(name_of(page), blocks, Path(folder), url)
    lines = text.splitlines(keepends=True)
    for block, output in reversed(list(zip(blocks, outputs, strict=True))):
        if block.output is not None:
            lines[slice(*block.output_lines)] = [output if output.endswith("\n") else f"{output}\n"]
    return "".join(lines)


def main() -> None:
    """Rewrite the pages that are not up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", action="store_true", help="run the blocks whose output a page shows")
    args = parser.parse_args()
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = with_tables(with_lines(before))
        if args.outputs:
            after = with_outputs(page, after)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(name_of(page))


if __name__ == "__main__":
    main()
