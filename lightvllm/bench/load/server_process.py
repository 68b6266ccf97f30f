"""A server of our own for the time of a measurement or a test: `lightvllm serve` in a process."""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightvllm.client import Client

READY_POLL_SECONDS = 0.1


@contextlib.contextmanager
def running_server(options: Mapping[str, Any], timeout: float = 120.0) -> Iterator[str]:
    """Start a server on a free port of this machine; gives its URL once it is ready, and ends it afterwards.

    Args:
        options: fields of `lightvllm.config.EngineConfig` and `ServerConfig`.
        timeout: seconds that it may take to be ready.

    Raises:
        ValueError: it did not start, with the end of what it said.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder) / "config.yaml", Path(folder) / "log"
        config.write_text(json.dumps({"host": "127.0.0.1", "port": port} | dict(options)))  # JSON is YAML
        with log.open("wb") as output:
            command = [sys.executable, "-m", "lightvllm.cli", "serve", "--config", str(config)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        url = f"http://127.0.0.1:{port}"
        try:
            with Client(url) as client:
                deadline = time.monotonic() + timeout
                while not client.health():
                    if process.poll() is not None or time.monotonic() > deadline:
                        last = log.read_text(encoding="utf-8", errors="replace").strip()[-1000:]
                        raise ValueError(f"the server did not start: {last}")
                    time.sleep(READY_POLL_SECONDS)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
