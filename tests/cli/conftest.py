from pathlib import Path

import pytest

from tests.cli.models import make_chat_model


@pytest.fixture(scope="package")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("chat_model"))
