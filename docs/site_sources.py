"""A hook of mkdocs: what the pages link to outside of docs/ becomes part of the site.

In the Markdown such a link is relative, and may end in #L12, as a clone and Git hosts have it. mkdocs looks at docs/
alone. So here each such file gets a page under source/ that shows it with numbered lines, each folder a list of its
files, and links are turned there. Other Markdown files become pages as they are.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LANGUAGES = {
    **{".py": "python", ".cpp": "cpp", ".h": "cpp", ".json": "json", ".toml": "toml", ".yaml": "yaml", ".sql": "sql"},
    **{"": "text", ".txt": "text", ".jinja": "jinja"},
}
_LINK = re.compile(r"(?<=\]\()(?P<target>[^):#\s]+)(?P<line>#L\d+)?")
# What the theme calls the line of the first block of code on a page.
_LINE_ANCHOR = "#__codelineno-0-"
_LINE_ID = re.compile(r'id="(__codelineno-0-\d+)"')
_NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file and folder that is linked to, and for those that these link to."""
    queue = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    seen = set(queue)
    while queue:
        path = queue.pop()
        for target in sorted(_targets(path) - seen):
            seen.add(target)
            if not _is_in_site(target):
                files.append(_file(target, config))
                queue.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the page's links to where the site has their targets."""
    origin = _origin(page.file.src_uri)
    return markdown if origin is None else _turned(markdown, origin, page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tell mkdocs of the lines' anchors, which it does not see, so that it can say which links have none."""
    if page.present_anchor_ids is not None:
        page.present_anchor_ids |= set(_LINE_ID.findall(html))
    return html


def _targets(path: str) -> set[str]:
    """What a Markdown file links to, or a folder has in it: paths from the repository's root."""
    place = ROOT / path
    if place.is_dir():
        return {f"{path}/{file.name}" for file in place.iterdir() if file.is_file() and file.name[0] != "."}
    if place.suffix != ".md":
        return set()
    links = _LINK.finditer(place.read_text(encoding="utf-8"))
    found = {posixpath.normpath(posixpath.join(posixpath.dirname(path), link["target"])) for link in links}
    return {target for target in found if not target.startswith("..") and (ROOT / target).exists()}


def _is_in_site(path: str) -> bool:
    return path.startswith("docs/") and (ROOT / path).is_file()


def _site_uri(path: str) -> str:
    """Where the site has a file of the repository."""
    if _is_in_site(path):
        return path.removeprefix("docs/")
    place = ROOT / path
    if place.is_dir():
        return f"source/{path}/index.md"
    return f"source/{path}.md" if place.suffix in LANGUAGES or place.suffix == ".md" else f"source/{path}"


def _origin(uri: str) -> str | None:
    """The Markdown file of the repository that a page of the site is; None if it is made here."""
    if not uri.startswith("source/"):
        return f"docs/{uri}"
    return uri.removeprefix("source/").removesuffix(".md") if uri.endswith(".md.md") else None


def _file(path: str, config: MkDocsConfig) -> File:
    place, uri = ROOT / path, _site_uri(path)
    if place.is_dir():
        names = sorted(posixpath.basename(target) for target in _targets(path))
        items = "".join(f"- [{name}]({_relative(f'{path}/{name}', uri)})\n" for name in names)
        return File.generated(config, uri, content=f"{_NOT_SEARCHED}# {path}\n\n{items}")
    if place.suffix == ".md":
        return File.generated(config, uri, content=_NOT_SEARCHED + place.read_text(encoding="utf-8"))
    if place.suffix in LANGUAGES:
        code = place.read_text(encoding="utf-8")
        block = f'~~~~~~~~{LANGUAGES[place.suffix]} linenums="1"\n{code}\n~~~~~~~~'
        return File.generated(config, uri, content=f"{_NOT_SEARCHED}# {path}\n\n{block}\n")
    return File.generated(config, uri, content=place.read_bytes())


def _turned(markdown: str, origin: str, uri: str) -> str:
    """The Markdown of a file of the repository, as it is right at that place of the site."""

    def turned(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link["target"]))
        if not (ROOT / path).exists():
            return link[0]
        line = link["line"].replace("#L", _LINE_ANCHOR) if link["line"] else ""
        return _relative(path, uri) + line

    return _LINK.sub(turned, markdown)


def _relative(path: str, uri: str) -> str:
    return posixpath.relpath(_site_uri(path), posixpath.dirname(uri) or ".")
