"""Every relative link, image and anchor in the repository's Markdown leads somewhere. No network."""

import itertools
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it.token import Token

from tests.docs.pages import ROOT, markdown_files, name_of, parse

_IN_HTML = re.compile(r"""(?:href|src)=["']([^"']+)["']""")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:")


def slug(heading: str) -> str:
    """The anchor of a heading, as Git hosts and our site make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """All that a link into a page may name."""
    tokens = parse(text)
    found = set(re.findall(r"""<\w+[^>]*\bid=["']([^"']+)["']""", text))
    for token, content in itertools.pairwise(tokens):
        if token.type == "heading_open":
            found.add(slug("".join(child.content for child in content.children or [])))
    return found


def links(text: str) -> list[str]:
    """Links, images, and those in HTML."""
    found: list[str] = []

    def visit(tokens: list[Token]) -> None:
        for token in tokens:
            if token.type in ("link_open", "image"):
                found.append(unquote(str(token.attrs.get("href", token.attrs.get("src")))))
            elif token.type in ("html_block", "html_inline"):
                found.extend(_IN_HTML.findall(token.content))
            visit(token.children or [])

    visit(parse(text))
    return found


def problems(page: Path) -> list[str]:
    """The links of a page that lead nowhere, with why."""
    text = page.read_text(encoding="utf-8")
    found = []
    for link in links(text):
        if _SCHEME.match(link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if path.startswith("/"):
            found.append(f"{link}: only relative links hold in a clone, on a Git host and on the site")
        elif not target.exists():
            found.append(f"{link}: no such file")
        elif fragment and not _has(target, fragment):
            found.append(f"{link}: no such anchor")
    return found


def _has(target: Path, fragment: str) -> bool:
    if target.is_dir():
        return False
    text = target.read_text(encoding="utf-8")
    if target.suffix == ".md":
        return fragment in anchors(text)
    line = re.fullmatch(r"L(\d+)", fragment)
    return line is not None and 1 <= int(line[1]) <= len(text.splitlines())


@pytest.mark.parametrize("page", markdown_files(), ids=name_of)
def test_links(page: Path) -> None:
    assert not problems(page)


def test_all_pages_are_looked_at() -> None:
    found = set(map(name_of, markdown_files()))
    assert {"README.md", "CONTRIBUTING.md", "docs/design.md", "lightvllm/default_model/README.md"} <= found
    seen = links((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {"docs/architecture.svg", "docs/server.md", "docs/design.md#bitwise-equality"} <= set(seen)


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("one\ntwo\n")
    (tmp_path / "other.md").write_text("# What it's `for`, 한국어\n\n<a id='here'></a>\n")
    good = (
        "[a](other.md) [b](other.md#what-its-for-한국어) [c](other.md#here) [d](code.py#L2) [e](#top) [f](https://x.y)"
    )
    bad = "[a](none.md) [b](other.md#what) [c](code.py#L3) [d](#no) ![](none.png) <img src='none.svg'> [e](/other.md)"
    page = tmp_path / "page.md"
    page.write_text(f"# Top\n\n{good}\n\n`[x](none)`\n\n{bad}\n")
    broken = [problem.partition(":")[0] for problem in problems(page)]
    assert broken == ["none.md", "other.md#what", "code.py#L3", "#no", "none.png", "none.svg", "/other.md"]
