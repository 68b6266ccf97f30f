"""A server for the pages that speak to one."""

from collections.abc import Iterator

import pytest
import yaml

from lightvllm.bench.load.server_process import running_server
from tests.docs.pages import ROOT


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """With the settings of the example; its URL."""
    options = yaml.safe_load((ROOT / "examples" / "server" / "server.yaml").read_text(encoding="utf-8"))
    with running_server({name: value for name, value in options.items() if name not in ("host", "port")}) as url:
        yield url
