"""docs/how-to/cuda.md shows what is there: each of its blocks, word for word."""

from tests.docs.how_to import ROOT, titled_blocks


def test_the_page_shows_what_is_there() -> None:
    blocks = titled_blocks("cuda.md")
    assert len(blocks) == 6
    for block in blocks:
        assert block.text in (ROOT / block.path).read_text(encoding="utf-8"), block.text
