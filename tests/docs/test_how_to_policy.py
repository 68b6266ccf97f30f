"""docs/how-to/policy.md, followed: who ends first changes, and the scheduler stays sound whatever comes."""

from pathlib import Path

from tests.docs.how_to import follow


def test_the_page(tmp_path: Path) -> None:
    copy = follow("policy.md", tmp_path)
    copy.check_style()
    assert copy.added("lightvllm") == {"lightvllm/engine/policy.py": 1}
    assert copy.num_passed("tests/engine/test_shortest.py") == 4
    assert "{fcfs,priority,shortest}" in copy.run("-m", "lightvllm.cli", "serve", "--help")
