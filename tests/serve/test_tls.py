"""TLS: a server with a certificate of a test's own authority, and those who trust that authority or do not."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import numpy as np
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import load_pem_x509_certificate
from tritonclient.http import InferenceServerClient
from tritonclient.http import aio as tritonclient_aio

from tests.exports import exported
from tests.serve.conftest import ROOT, Live, loss_inputs, stop
from tests.serve.test_operation import free_port
from tests.served import POLL_SECONDS
from yolo_assigner.serve.client import AssignerClient, ServerError
from yolo_assigner.serve.listening import check_certificate, reload_certificate

PASSWORD = "password-of-a-test"  # noqa: S105
BATCH: dict[str, Any] = {"batch_idx": [0], "cls": [1], "bboxes": [[0.5, 0.5, 0.4, 0.4]]}


class Files(NamedTuple):
    """PEM files."""

    authority: Path
    other_authority: Path
    certificate: Path
    key: Path
    encrypted_key: Path


class Secure(NamedTuple):
    """A server with TLS, and its metrics."""

    live: Live
    metrics_port: int
    errors: Path

    @property
    def url(self) -> str:
        """For clients."""
        return f"https://{self.live.url}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    made = Files(*(folder / f"{name}.pem" for name in Files._fields))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(made.authority)
    trustme.CA().cert_pem.write_to_path(made.other_authority)
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(made.certificate, append=number > 0)
    certificate.private_key_pem.write_to_path(made.key)
    key = load_pem_private_key(made.key.read_bytes(), None)
    encryption = BestAvailableEncryption(PASSWORD.encode())
    made.encrypted_key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return made


def command(artifacts: Path, certificate: Path, key: Path, *more: str) -> list[str]:
    words = ("--artifacts", artifacts, "--ssl-certfile", certificate, "--ssl-keyfile", key, "--port", "0")
    return [sys.executable, "-m", "yolo_assigner", "serve", *map(str, words), *more]


@pytest.fixture(scope="module")
def secure(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """Started with an encrypted key, whose password is in its environment."""
    port, errors = free_port(), tmp_path_factory.mktemp("log") / "errors"
    words = command(exported("loss", "sparse"), files.certificate, files.encrypted_key, "--metrics-port", str(port))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "YOLO_ASSIGNER_SSL_KEYFILE_PASSWORD": PASSWORD}
    with errors.open("w") as file:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=file, text=True, env=environment, stdin=subprocess.DEVNULL
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving on https://127.0.0.1:"), line
    live = Live("127.0.0.1", int(line.rpartition(":")[2]), process)
    server = Secure(live, port, errors)
    while get(server, files.authority, "/v2/health/ready") != 200:
        assert process.poll() is None
        time.sleep(POLL_SECONDS)
    yield server
    assert stop(live) == 0
    log = errors.read_text()
    assert "Traceback" not in log
    assert PASSWORD not in log


def get(secure: Secure, authority: Path, path: str) -> int:
    context = ssl.create_default_context(cafile=authority)
    connection = HTTPSConnection("127.0.0.1", secure.live.port, context=context, timeout=120)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def maps() -> list[Any]:
    arrays = loss_inputs(images=1)
    return [arrays[f"feat_{level}"] for level in range(3)]


@pytest.fixture(autouse=True)
def _serves_the_next(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "secure" in request.fixturenames:
        secure, files = (request.getfixturevalue(name) for name in ("secure", "files"))
        assert get(secure, files.authority, "/v2/health/ready") == 200


def test_the_same_loss_as_without(secure: Secure, files: Files, live: Live) -> None:
    with AssignerClient(secure.url, ca_file=files.authority) as client, AssignerClient(live.url) as plain:
        np.testing.assert_array_equal(client.loss(maps(), BATCH).loss, plain.loss(maps(), BATCH).loss)


def test_the_protocols_clients(secure: Secure, files: Files) -> None:
    options = {"ca_certs": str(files.authority)}
    with InferenceServerClient(secure.live.url, ssl=True, ssl_options=options) as client:
        assert client.is_server_ready()

    async def scenario() -> Any:
        context = ssl.create_default_context(cafile=files.authority)
        async with tritonclient_aio.InferenceServerClient(secure.live.url, ssl=True, ssl_context=context) as client:
            return await client.get_server_metadata()

    assert asyncio.run(scenario())["name"] == "yolo-assigner"


def test_an_authority_that_nobody_named(secure: Secure, files: Files) -> None:
    """The client leaves before anything is sent."""
    for ca_file in (files.other_authority, None):
        with (
            AssignerClient(secure.url, ca_file=ca_file) as client,
            pytest.raises(ServerError, match="ca_file") as caught,
        ):
            client.loss(maps(), BATCH)
        assert caught.value.status is None
        assert "verify failed" in str(caught.value)


def test_plain_http_on_the_port_of_tls_and_the_other_way_round(secure: Secure, files: Files, live: Live) -> None:
    with socket.create_connection(("127.0.0.1", secure.live.port), timeout=120) as connection:
        connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nhost: localhost\r\n\r\n")
        try:
            reply = connection.recv(100)
        except ConnectionResetError:
            reply = b""
    assert not reply.startswith(b"HTTP")
    with AssignerClient(secure.live.url) as client, pytest.raises(ServerError, match="With TLS, write https://"):
        client.loss(maps(), BATCH)
    other = AssignerClient(f"https://{live.url}", ca_file=files.authority)
    with other, pytest.raises(ServerError, match="an http:// address where it has none"):
        other.loss(maps(), BATCH)


def test_metrics_stay_plain(secure: Secure) -> None:
    with urlopen(f"http://127.0.0.1:{secure.metrics_port}/metrics", timeout=120) as response:
        assert b"yolo_assigner_models_ready" in response.read()


def test_files_that_cannot_be_used(files: Files, tmp_path: Path) -> None:
    """Found before anything else is done, and never by a question on the terminal."""
    wrong = {
        "the key is encrypted; give its password as YOLO_ASSIGNER_SSL_KEYFILE_PASSWORD": (files.encrypted_key, None),
        "the key cannot be decrypted": (files.encrypted_key, "another"),
        "they cannot be used for TLS": (files.certificate, None),
        "missing.pem cannot be read for TLS": (tmp_path / "missing.pem", None),
    }
    for words, (key, password) in wrong.items():
        with pytest.raises(ValueError, match=words):
            check_certificate(files.certificate, key, password)
    with pytest.raises(ValueError, match="do not belong together"):
        check_certificate(files.authority, files.key, None)
    check_certificate(files.certificate, files.encrypted_key, PASSWORD)
    with pytest.raises(ValueError, match="write https://"):
        AssignerClient("127.0.0.1:1", ca_file=files.authority)
    with pytest.raises(ValueError, match="cannot be used"):
        AssignerClient("https://127.0.0.1:1", ca_file=tmp_path / "missing.pem")


def test_handshakes_succeed_while_a_certificate_is_reloaded(files: Files, tmp_path: Path) -> None:
    """The new key is a pipe, so that each of its readings waits until a handshake has been made."""
    context = check_certificate(files.certificate, files.key, None)
    pair = trustme.CA().issue_cert("127.0.0.1")
    certificate, key = tmp_path / "new.pem", tmp_path / "pipe"
    pair.cert_chain_pems[0].write_to_path(certificate)
    os.mkfifo(key)
    both = {first_certificate(path) for path in (files.certificate, certificate)}
    readings = 0
    reloading = threading.Thread(target=reload_certificate, args=(context, certificate, key, None), daemon=True)
    reloading.start()
    while reloading.is_alive():
        time.sleep(0.01)
        try:
            pipe = os.open(key, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nothing reads it yet, or any more
            continue
        readings += 1
        assert served_by(context) in both
        with suppress(BrokenPipeError):
            os.write(pipe, pair.private_key_pem.bytes())
        os.close(pipe)
    assert readings > 0
    assert served_by(context) == first_certificate(certificate)


def first_certificate(path: Path) -> bytes:
    return load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)


def served_by(context: ssl.SSLContext) -> bytes | None:
    """Shake hands in memory, naming no host, and give the certificate."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(up, down, server_side=True)
    client = trusting.wrap_bio(down, up)
    for side in (client, server, client):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client.getpeercert(binary_form=True)


def test_a_server_that_cannot_use_them_says_so(assigner_dir: Path, files: Files) -> None:
    words = command(assigner_dir, files.certificate, files.encrypted_key)
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the key is encrypted" in done.stderr
    assert len(done.stderr.splitlines()) == 1
