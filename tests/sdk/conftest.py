"""Two real servers for all of these tests, and OpenAI's own client to speak with them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from lightvllm.bench.load.server_process import running_server
from lightvllm.config import DEFAULT_MODEL
from tests.sdk.assistant import make_assistant
from tests.sdk.wire import Server

SQL_OPTIONS = {"model": str(DEFAULT_MODEL), "max_model_len": 1024, "kv_cache_memory_bytes": 64 << 20}
ASSISTANT_OPTIONS = {
    "served_model_name": ["assistant", "alias"],
    "api_key": ["secret", "spare"],
    "kv_cache_memory_bytes": 32 << 20,
    "scheduling_policy": "priority",
    "max_queued_requests": 8,
    "trust_request_chat_template": True,
}


@contextlib.contextmanager
def serving(options: dict[str, Any], api_key: str | None = None) -> Iterator[Server]:
    """A server of its own for a while."""
    with running_server(options) as url, Server(url, api_key) as server:
        yield server


@pytest.fixture(scope="session")
def assistant_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights that calls tools and reasons."""
    return make_assistant(tmp_path_factory.mktemp("assistant"))


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The default model, with almost nothing but defaults."""
    with serving(SQL_OPTIONS) as server:
        yield server


@pytest.fixture(scope="session")
def assistant(assistant_folder: Path) -> Iterator[Server]:
    """The checkpoint that calls tools: with keys, two names, priorities, a short queue, and templates from requests."""
    with serving({"model": str(assistant_folder), **ASSISTANT_OPTIONS}, "secret") as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    """Speaks with the default model."""
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def tiny(assistant: Server) -> Iterator[openai.OpenAI]:
    """Speaks with the checkpoint that calls tools."""
    with assistant.client() as client:
        yield client
