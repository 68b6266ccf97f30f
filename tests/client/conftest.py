from collections.abc import Iterator

import pytest

from tests.client.fake_server import FakeServer, running


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running() as server:
        yield server


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the synchronous client would have waited; it does not wait."""
    waited: list[float] = []
    monkeypatch.setattr("lightvllm.client.client.time.sleep", waited.append)
    return waited
