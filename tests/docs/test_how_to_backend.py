"""docs/how-to/backend.md, followed: the backend gives what the reference gives, in batches and behind a model."""

from pathlib import Path

from tests.docs.how_to import follow


def test_the_page(tmp_path: Path) -> None:
    copy = follow("backend.md", tmp_path)
    copy.check_style()
    assert sorted(copy.added("lightvllm")) == ["lightvllm/attention/online.py", "lightvllm/attention/registry.py"]
    assert copy.added("lightvllm")["lightvllm/attention/registry.py"] == 1
    # Two types, three head counts, three windows, a plain and an int8 cache; and the test of the page.
    assert copy.num_passed("tests/attention", "-k", "online") == 2 * 3 * 3 * 2 + 1
