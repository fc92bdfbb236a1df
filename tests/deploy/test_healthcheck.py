"""The health check of the image finds the service wherever it listens."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from tests.exports import exported
from tests.serve.conftest import ROOT
from yolo_assigner.serve.healthcheck import main, reachable

ENTRYPOINT = (sys.executable, "-m", "deploy.entrypoint")
# Processes of its own with the first one its first, and a /proc that shows no others: what of a container matters here.
ISOLATED = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
ALL = "0.0.0.0"  # noqa: S104
PATIENCE = 30.0


@pytest.fixture(scope="module")
def isolated() -> None:
    if sys.platform != "linux" or subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode:
        pytest.skip("processes cannot be isolated here; it takes Linux, root and unshare")


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        return int(free.getsockname()[1])


class Container(NamedTuple):
    """The service, isolated."""

    process: subprocess.Popen[str]
    environment: Mapping[str, str]
    log: Path

    @property
    def first(self) -> str:
        """Its first process, as it is called outside."""
        pid = self.process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()

    def health(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What the image's health check says."""
        command = ["nsenter", "--target", self.first, "--pid", "--mount", *ENTRYPOINT, "health", *words]
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def wait_until_healthy(self) -> None:
        """Until the health check says so, which is not asked before the log says that the model is loaded."""
        deadline = time.monotonic() + PATIENCE
        while "assigner is ready" not in (log := self.log.read_text()):
            assert self.process.poll() is None, "it has ended"
            assert time.monotonic() < deadline, log
            time.sleep(0.05)
        while (checked := self.health()).returncode:
            assert self.process.poll() is None, "it has ended"
            assert time.monotonic() < deadline, checked.stderr
            time.sleep(0.1)


@contextlib.contextmanager
def container(folder: Path, words: Sequence[str] = (), **variables: str) -> Iterator[Container]:
    """The service as the image starts it but for the engine process, with variables as the image has them and these."""
    artifacts = str(exported("assigner", "dense"))
    own = {"ARTIFACTS": artifacts, "HOST": ALL, "PORT": "1", "INSECURE": "1", "ENGINE_PROCESS": "false", **variables}
    named = {f"YOLO_ASSIGNER_{name}": value for name, value in own.items() if value}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **named}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*ISOLATED, *ENTRYPOINT, *words], env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving on "), (folder / "log.txt").read_text()
        yield Container(process, environment, folder / "log.txt")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize(
    ("source", "host"),
    [*(("flag", host) for host in (ALL, "::", "::1", "localhost")), ("environment", ALL), ("file", "127.0.0.1")],
)
def test_any_address_from_any_source(tmp_path: Path, host: str, source: str) -> None:
    port = free_port("::1" if ":" in host else "127.0.0.1")
    match source:
        case "flag":
            using = container(tmp_path, ["serve", "--host", host, f"--port={port}"])
        case "environment":
            using = container(tmp_path, HOST=host, PORT=str(port))
        case _:
            (tmp_path / "serve.toml").write_text(f'host = "{host}"\nport = {port}\n')
            using = container(tmp_path, CONFIG=str(tmp_path / "serve.toml"), HOST="", PORT="")
    with using as service:
        service.wait_until_healthy()


@pytest.mark.usefixtures("isolated")
def test_a_file_that_a_flag_names(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text(f"port = {free_port()}\n")
    with container(tmp_path, ["--config", str(tmp_path / "serve.toml")], PORT="") as service:
        service.wait_until_healthy()


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("source", ["flag", "environment"])
def test_tls_of_any_authority(tmp_path: Path, source: str) -> None:
    pair = trustme.CA().issue_cert("models.example.com")
    files = {"ssl_certfile": tmp_path / "chain.pem", "ssl_keyfile": tmp_path / "key.pem"}
    files["ssl_keyfile"].write_bytes(pair.private_key_pem.bytes())
    files["ssl_certfile"].write_bytes(b"".join(part.bytes() for part in pair.cert_chain_pems))
    words, variables = [], {}
    for name, path in files.items():
        if source == "flag":
            words += [f"--{name.replace('_', '-')}", str(path)]
        else:
            variables[name.upper()] = str(path)
    with container(tmp_path, words, PORT=str(free_port()), **variables) as service:
        service.wait_until_healthy()


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("source", ["flag", "environment"])
def test_a_unix_socket(tmp_path: Path, source: str) -> None:
    path = str(tmp_path / "socket")
    using = (
        container(tmp_path, ["--unix-socket", path])
        if source == "flag"
        else container(tmp_path, UNIX_SOCKET=path, HOST="", PORT="")
    )
    with using as service:
        service.wait_until_healthy()


@pytest.mark.usefixtures("isolated")
def test_a_service_that_stops_and_settings_of_another_one(tmp_path: Path) -> None:
    port = free_port()
    words = ["serve", f"--port={port}", "--lame-duck-seconds", "30"]
    with container(tmp_path, words, ENGINE_PROCESS="true") as service:
        service.wait_until_healthy()
        assert service.health("--port", str(port)).returncode == 0
        other = service.health("--port", str(free_port()))
        assert other.returncode == 1
        assert other.stderr.startswith("healthcheck: ")
        os.kill(int(service.first), signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while not (stopping := service.health()).returncode:
            assert time.monotonic() < deadline
        assert stopping.returncode == 1
        assert "/v2/health/ready was answered with 503" in stopping.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--artifacts", "a", "--port", "0"), "port is 0"),
        (("--artifacts", "a", "--port", "x"), "port (--port)"),
        (("--artifacts", "a", "--port", "1"), "refused"),
    ],
)
def test_what_cannot_be_checked_is_unhealthy(
    words: Sequence[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    assert reason in capsys.readouterr().err


def test_something_else_on_the_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [
            sys.executable,
            "-m",
            "yolo_assigner.serve.healthcheck",
            "--artifacts",
            "a",
            f"--port={listener.getsockname()[1]}",
        ]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            caller, _ = listener.accept()
            caller.sendall(b"220 mail.example.com\r\n")
            caller.close()
            assert process.wait(PATIENCE) == 1
            assert process.stderr is not None
            assert "220 mail.example.com" in process.stderr.read()
    assert capsys.readouterr().out == ""


def test_addresses_that_mean_all() -> None:
    assert (reachable(ALL), reachable("::")) == ("127.0.0.1", "::1")
    assert [reachable(host) for host in ("10.1.2.3", "server")] == ["10.1.2.3", "server"]
