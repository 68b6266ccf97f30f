"""Servers to be mistreated."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.server import Server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-kills", type=int, default=3, help="how often tests/chaos kills the engine under load")
    parser.addoption("--chaos-rounds", type=int, default=3, help="how often tests/chaos repeats what must leak nothing")


@pytest.fixture(scope="session")
def num_kills(pytestconfig: pytest.Config) -> int:
    # Where all tests run, this folder's options are not known to the command line.
    return pytestconfig.getoption("--chaos-kills", 3)


@pytest.fixture(scope="session")
def num_rounds(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("--chaos-rounds", 3)


@pytest.fixture(scope="session")
def device_flags(device: str) -> list[str]:
    """Where engines run, and on a GPU that they answer the same in any company, as they do on a CPU."""
    return ["--device", device, *(["--batch-invariant"] if device != "cpu" else [])]


@pytest.fixture
def start_server(tmp_path: Path, device_flags: list[str]) -> Iterator[Callable[..., Server]]:
    """`start_server(*flags)`: a server of the default model, which is gone after the test."""
    servers: list[Server] = []

    def start(*flags: str) -> Server:
        servers.append(Server(tmp_path / f"server-{len(servers)}", *device_flags, *flags))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, device_flags: list[str]) -> Iterator[Server]:
    """One server for all the tests that let it live; after each it must be as it was before."""
    timeouts = ("--engine-timeout", "4", "--client-timeout", "3")
    server = Server(tmp_path_factory.mktemp("chaos"), *device_flags, *timeouts)
    server.wait_until_ready()
    yield server
    server.end()
