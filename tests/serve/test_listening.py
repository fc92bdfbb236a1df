"""Where the server listens: both families at one port, and a Unix socket."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from tests.exports import exported
from tests.serve.conftest import ROOT, Reply, assigner_inputs, binary_rows
from yolo_assigner.serve.http.origins import origins_of
from yolo_assigner.serve.listening import SOCKET_MODE, Listener, caller_of, listen
from yolo_assigner.serve.settings import Settings, read_settings

FORWARDED = {"X-Forwarded-For": "203.0.113.7"}
PATIENCE = 60.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


class Local(NamedTuple):
    """A server and what it said."""

    process: subprocess.Popen[str]
    line: str
    log: Path

    def send(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        """One request over its Unix socket."""
        connection = UnixConnection(Path(self.line.removeprefix("serving on unix:")))
        try:
            connection.request("GET" if body is None else "POST", path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def end(self) -> int:
        """Stop it; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def serving(folder: Path, *words: str | Path) -> Iterator[Local]:
    """Start a server without keys."""
    command = [
        sys.executable,
        "-m",
        "yolo_assigner",
        "serve",
        "--artifacts",
        str(exported("assigner", "dense")),
        "--threads",
        "1",
    ]
    log = folder / "log.txt"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert process.stdout is not None
    with process.stdout:
        try:
            yield Local(process, process.stdout.readline().strip(), log)
        finally:
            process.kill()
            process.wait()


def settings(*words: str | Path) -> Settings:
    return read_settings(["--artifacts", "a", *map(str, words)], {}).settings


def test_both_families_at_one_port(tmp_path: Path) -> None:
    words = ("--host", "::", "--port", "0", "--insecure", "--trusted-proxy", "127.0.0.0/8", "--no-engine-process")
    with serving(tmp_path, *words) as server:
        assert server.line.startswith("serving on http://[::]:")
        port = int(server.line.rpartition(":")[2])
        for host, headers in (("127.0.0.1", {}), ("::1", {}), ("127.0.0.1", FORWARDED), ("::1", FORWARDED)):
            connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
            connection.request("GET", "/nothing", headers=headers)
            assert connection.getresponse().status == 404
            connection.close()
        assert server.end() == 0
        peers = [line.rpartition(" from ")[2] for line in server.log.read_text().splitlines() if "/nothing" in line]
    assert [peer.rpartition(":")[0] for peer in peers] == ["127.0.0.1", "[::1]", "203.0.113.7", "[::1]"]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])  # noqa: S104
def test_one_family_is_one(host: str) -> None:
    listener = listen(settings("--host", host, "--port", "0", "--insecure"))
    port = listener.sockets[0].getsockname()[1]
    other = "127.0.0.1" if ":" in host else "::1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((other, port), PATIENCE)
    listener.close()


def test_a_unix_socket_from_first_to_last(tmp_path: Path) -> None:
    """Without keys, as on loopback. Replies of megabytes come whole."""
    path = tmp_path / "serve.sock"
    with serving(tmp_path, "--unix-socket", path, "--host", "0.0.0.0", "--trusted-proxy", "unix") as server:  # noqa: S104
        assert server.line == f"serving on unix:{path}"
        found = path.stat().st_mode
        assert (stat.S_ISSOCK(found), stat.S_IMODE(found)) == (True, SOCKET_MODE)
        while server.send("/v2/health/ready").status != 200:
            time.sleep(0.05)
        inputs = assigner_inputs(images=8, side=320)
        rows, blob = binary_rows(inputs)
        text = json.dumps(
            {"inputs": rows, "outputs": [{"name": "target_scores", "parameters": {"binary_data": True}}]}
        ).encode()
        length = {"Inference-Header-Content-Length": str(len(text))}
        reply = server.send("/v2/models/assigner/infer", text + blob, length)
        assert reply.status == 200, reply.body[:1000]
        head = int(reply.headers["Inference-Header-Content-Length"])
        assert len(reply.body) - head == 4 * inputs["pd_scores"].size
        assert server.send("/nothing", headers=FORWARDED).status == 404
        assert server.send("/nothing/else").status == 404
        assert server.end() == 0
        log = server.log.read_text()
    assert "/nothing 404" in log
    assert "from 203.0.113.7:0\n" in log
    assert "from unix\n" in log
    assert not path.exists()


def test_tls_over_a_unix_socket(tmp_path: Path) -> None:
    authority = trustme.CA()
    pair = authority.issue_cert("localhost")
    pair.private_key_pem.write_to_path(tmp_path / "key.pem")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    path = tmp_path / "serve.sock"
    files = "--ssl-certfile", tmp_path / "chain.pem", "--ssl-keyfile", tmp_path / "key.pem"
    with serving(tmp_path, "--unix-socket", path, "--no-engine-process", *files) as server:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(PATIENCE)
        plain.connect(str(path))
        with context.wrap_socket(plain, server_hostname="localhost") as connection:
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(2**16).startswith(b"HTTP/1.1 200 ")
        assert server.end() == 0


def test_the_socket_of_a_killed_server_is_replaced_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    with serving(tmp_path, "--unix-socket", path) as killed:
        assert killed.line
        killed.process.kill()
    assert path.is_socket()
    with serving(tmp_path, "--unix-socket", path) as living:
        assert living.send("/v2/health/live").status == 200
        with serving(tmp_path, "--unix-socket", path) as second:
            assert second.process.wait(PATIENCE) == 2
            assert "a server is listening there" in second.log.read_text()
        assert living.send("/v2/health/live").status == 200
        assert living.end() == 0
    assert not path.exists()


def test_a_server_that_drains_leaves_its_place_to_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    first = listen(settings("--unix-socket", path))
    first.remove_file()  # as the server does before it closes its sockets
    second = listen(settings("--unix-socket", path))
    first.close()
    assert path.is_socket()
    second.close()
    assert not path.exists()


def test_a_file_of_somebody_else_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    listener = listen(settings("--unix-socket", path))
    path.unlink()
    path.write_text("notes")
    listener.close()
    assert path.read_text() == "notes"


def test_what_is_no_place_for_a_socket(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("notes")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messages:
        messages.bind(str(tmp_path / "messages"))
        for path, reason in (
            (file, "no socket"),
            (tmp_path, "no socket"),
            (tmp_path / "messages", "type"),
            (tmp_path / "nothing" / "serve.sock", "No such file"),
            (tmp_path / ("x" * 108), "too long"),
        ):
            with pytest.raises(OSError, match=f"cannot listen on the Unix socket {path} .*{reason}.*choose another"):
                listen(settings("--unix-socket", path))
    assert file.read_text() == "notes"


def test_of_many_servers_that_start_at_once_one_gets_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    chosen = settings("--unix-socket", path)
    for _ in range(50):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))  # as a killed server leaves it
        begin = threading.Barrier(8)
        opened: list[Listener] = []

        def start(begin: threading.Barrier = begin, opened: list[Listener] = opened) -> None:
            begin.wait()
            with suppress(OSError):
                opened.append(listen(chosen))

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (listener,) = opened
        listener.close()


@pytest.mark.parametrize(
    ("address", "own", "caller"),
    [
        (("::ffff:192.0.2.1", 5), ("::ffff:192.0.2.9", 80), ("192.0.2.1", 5)),
        (("2001:db8::1", 5), ("::1", 80), ("2001:db8::1", 5)),
        (("fe80::1%eth0", 5), ("::1", 80), ("fe80::1%eth0", 5)),
        (("192.0.2.1", 5), ("192.0.2.9", 80), ("192.0.2.1", 5)),
        (None, ("/run/serve.sock", None), ("unix", 0)),
        (None, ("192.0.2.9", 80), None),  # it has hung up already
    ],
)
def test_callers(address: tuple[str, int] | None, own: tuple[str, int | None], caller: tuple[str, int] | None) -> None:
    assert caller_of(address, own) == caller


def test_names_over_a_unix_socket() -> None:
    """Programs make one up; one that DNS may have comes from a proxy, for somebody's browser."""
    origins = origins_of(settings("--unix-socket", "s", "--allowed-host", "models.example"), has_keys=False)
    assert [origins.answers_to(name) for name in ("localhost", "server", "127.0.0.1", "models.example")] == [True] * 4
    assert not origins.answers_to("evil.example")
