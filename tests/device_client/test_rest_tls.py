"""The REST service behind a certificate."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from device_client.identity import check_pair
from shared.errors import InvalidRequest
from tests.tiny import build_tiny_model

TOKEN = "sesame-open-sesame"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, cert.pem and key.pem."""
    folder = tmp_path_factory.mktemp("door")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    return folder


@pytest.fixture(scope="module")
def service(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a `device-client serve`."""
    model = build_tiny_model(tmp_path_factory.mktemp("tiny"))
    words = ["--http-tls-cert", str(files / "cert.pem"), "--http-tls-key", str(files / "key.pem")]
    command = [sys.executable, "-m", "device_client.cli", "serve", "--model", str(model), "--http-port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CIAR_HTTP_TOKEN": TOKEN}
    with subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[4]
        process.terminate()


def test_who_believes_the_certificate_draws(service: str, files: Path) -> None:
    assert service.startswith("https://127.0.0.1:")
    believing = ssl.create_default_context(cafile=files / "ca.pem")
    header = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=service, verify=believing, headers=header) as client:
        drawn = client.post("/generate", json={"prompt": "a cat", "mode": "device-only"})
        assert (drawn.status_code, client.get("/livez").status_code) == (200, 200)
    with httpx.Client(base_url=service, verify=believing) as stranger:
        assert stranger.post("/generate", json={"prompt": "a cat"}).status_code == 401
        assert stranger.get("/livez").status_code == 200
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{service}/livez")


def test_a_pair_that_does_not_work_is_named(files: Path, tmp_path: Path) -> None:
    cert, key, none = files / "cert.pem", files / "key.pem", tmp_path / "none"
    for pair, says in (
        ((cert, None), "--cert needs --key"),
        ((None, key), "--key needs --cert"),
        ((none, key), "--cert .*none cannot be read"),
        ((cert, none), "--key .*none cannot be read"),
        ((key, cert), "--cert .*key.pem and --key .*cert.pem do not work"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            check_pair(*pair, "--cert", "--key")
    check_pair(cert, key, "--cert", "--key")
