"""Shared by the engine core's tests."""

from types import SimpleNamespace

import pytest


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the one output field that differs from run to run, `first_scheduled_time`, as it is by default."""
    monkeypatch.setattr("lightvllm.engine.scheduler.time", SimpleNamespace(monotonic=lambda: None))
