"""docs/how-to/model.md, followed: the model that it adds is transformers', and the engine serves it on every path."""

from pathlib import Path

from tests.docs.how_to import follow


def test_the_page(tmp_path: Path) -> None:
    copy = follow("model.md", tmp_path)
    assert copy.added("lightvllm") == {
        "lightvllm/models/exaone4.py": copy.added("lightvllm/models")["lightvllm/models/exaone4.py"],
        "lightvllm/models/registry.py": 1,
    }
    assert copy.num_passed("tests/models/test_exaone4.py") == 3
    # Logits of whole sequences, and the engine's tokens: alone, then in chunks, sharing prefixes and preempted.
    assert copy.num_passed("tests/models/test_parity.py", "tests/e2e/test_parity.py", "-k", "exaone4") == 2
