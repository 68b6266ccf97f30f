import sys
from pathlib import Path

import pytest

from tests.models.checkpoints import make_checkpoint

# Where the programs are that measure on a GPU; they find each other as programs of one folder do.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny float32 checkpoint without a tokenizer."""
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path, "qwen3-tied")
    return path
