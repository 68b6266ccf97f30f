"""docs/how-to/model.md, followed: the model that it adds is transformers', and the engine serves it on every path."""

from pathlib import Path

from lightvllm import kernels
from tests.docs.how_to import follow


def test_the_page(tmp_path: Path) -> None:
    copy = follow("model.md", tmp_path)
    copy.check_style()
    assert copy.added("lightvllm") == {
        "lightvllm/models/exaone4.py": copy.added("lightvllm/models")["lightvllm/models/exaone4.py"],
        "lightvllm/models/registry.py": 1,
    }
    # The page's own tests; logits of whole sequences; the engine's tokens, alone and crowded.
    files = ["tests/models/test_exaone4.py", "tests/models/test_parity.py", "tests/e2e/test_parity.py"]
    assert copy.num_passed(*files, "-k", "exaone4") == (3 if kernels.COMPILED else 2) + 1 + 1
