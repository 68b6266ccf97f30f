"""TLS: a server of its own, certificates made by openssl."""

import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lightvllm.config import ServerConfig
from lightvllm.server.run import check_certificates

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With cert.pem of 127.0.0.1, which signs itself, and its key.pem."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run([*command.split(), "-addext", "subjectAltName=IP:127.0.0.1"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """Of a server that asks its clients for certificates."""
    flags = ["--port", "0", "--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem", "--ssl-ca-certs", "cert.pem"]
    command = [sys.executable, "-m", "lightvllm.cli", "serve", *flags]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        found = None
        for line in server.stderr:
            if (found := re.search(r"https://\S+", line)) is not None:
                break
        assert found is not None
        yield found[0]
        server.terminate()
        server.stderr.read()


def test_only_clients_with_a_certificate_are_answered(folder: Path, url: str) -> None:
    context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    with pytest.raises(httpx2.RequestError):
        httpx2.get(f"{url}/health", verify=context)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    assert httpx2.get(f"{url}/health", verify=context).status_code == 200


@pytest.mark.parametrize("field", ["ssl_certfile", "ssl_keyfile", "ssl_ca_certs"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_that_is_of_no_use_is_named_at_once(
    folder: Path, tmp_path: Path, field: str, content: str | None
) -> None:
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_text(content)
    files: dict[str, Any] = {
        "ssl_certfile": str(folder / "cert.pem"),
        "ssl_keyfile": str(folder / "key.pem"),
        field: str(file),
    }
    with pytest.raises(ValueError, match=rf"{field}.*file\.pem"):
        check_certificates(ServerConfig(**files))
