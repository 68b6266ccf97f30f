"""The site is built without a warning, and needs nobody else's computers to be read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_nothing_is_fetched(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not _FETCHED.search(page.read_text(encoding="utf-8")), page


def test_a_link_to_a_line_leads_to_it(site: Path) -> None:
    page = (site / "life-of-a-request.html").read_text(encoding="utf-8")
    link = re.search(r'href="(source/lightvllm/engine/scheduler\.py\.html)#([\w-]+)"', page)
    assert link is not None
    assert f'"{link[2]}"' in (site / link[1]).read_text(encoding="utf-8")


def test_the_reference_has_the_docstrings(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    assert "A model with its engine, for programs that have their prompts at hand." in page
    assert "max_num_batched_tokens" in page
