"""nginx and haproxy as ``deploy/`` configures them, before real servers."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.load.cases import SMALL, TINY, Case
from benchmarks.proxy import DEPLOY, Proxy, proxy
from benchmarks.rolling_restart import roll
from tests.serve.cluster.running import free_port
from tests.serve.conftest import Live, assigner_inputs, binary_rows, loss_inputs
from tests.serve.hostile.wire import Wire
from tests.serve.relay import relay
from tests.serve.test_retries import RAYS
from tests.serve.test_thin import assert_equal
from tests.served import Served, serving
from yolo_assigner.serve.cli import KEEP_ALIVE_SECONDS
from yolo_assigner.serve.client import AssignerClient, RetryPolicy, ServerError
from yolo_assigner.serve.settings import Settings

KINDS = ("nginx", "haproxy")
MIB = 2**20
IMAGES = 47  # 106 MB in float32
PATIENCE = 1  # seconds of the server with callers that stop
CALLER = "127.0.0.9"  # an address of this machine that is not the proxy's
LARGEST_FILE = 2**16
pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="several addresses of loopback are Linux's")]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed; it is a package of Debian")
    return name


class Logged(NamedTuple):
    """A server and the file of its log."""

    server: Served
    log: Path

    def callers(self, path: str, requests: int) -> list[str]:
        """Addresses that the log has for so many requests of a path, once it has them."""
        deadline = time.monotonic() + 60
        found: list[str] = []
        while len(found) < requests:
            assert time.monotonic() < deadline, found
            found = re.findall(rf"GET {path} 404 in [\d.]+ ms from (\S+)\n", self.log.read_text())
        return found


@contextlib.contextmanager
def logged(artifacts: Path, log: Path, *words: str) -> Iterator[Logged]:
    with log.open("w") as file, serving(artifacts, *words, errors=file.fileno()) as server:
        yield Logged(server, log)


@pytest.fixture(scope="module")
def trusting(artifacts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    """A server that believes the proxy and has little patience."""
    words = ("--trusted-proxy", "127.0.0.1", "--client-timeout", str(PATIENCE))
    with logged(artifacts_dir, tmp_path_factory.mktemp("trusting") / "log.txt", *words) as found:
        yield found


def before(kind: str, server: Served, *through: str) -> contextlib.AbstractContextManager[Proxy]:
    return proxy(kind, [server.port, server.port], through)


def read_slowly(reply: http.client.HTTPResponse) -> bytes:
    """Read a body more slowly than a server sends it: a proxy that buffers replies has to put them somewhere."""
    pieces = []
    while piece := reply.read(MIB):
        pieces.append(piece)
        time.sleep(0.01)
    return b"".join(pieces)


def test_large_bodies_pass_and_never_by_the_disk(kind: str, trusting: Logged) -> None:
    rows, blob = binary_rows(loss_inputs(images=IMAGES, side=640))
    asked = [{"name": f"grad_feat_{level}"} for level in range(3)]
    text = json.dumps({"inputs": rows, "outputs": asked, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    replies = []
    # A file that grows beyond this ends the process that writes it.
    with before(kind, trusting.server, "prlimit", f"--fsize={LARGEST_FILE}") as running:
        for port in (trusting.server.port, running.port):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            connection.request("POST", "/v2/models/loss_grad/infer", text + blob, headers)
            reply = connection.getresponse()
            replies.append(read_slowly(reply))
            assert reply.status == 200, replies[-1][:200]
            connection.close()
    assert len(text + blob) > 100 * 10**6
    assert len(replies[0]) > 100 * 10**6
    assert replies[0] == replies[1]


def test_the_log_names_the_caller_and_not_what_it_claims(kind: str, trusting: Logged) -> None:
    path = f"/caller-by-{kind}"
    with before(kind, trusting.server) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=120, source_address=(CALLER, 0))
        connection.request("GET", path, headers={"X-Forwarded-For": "203.0.113.7", "Host": "localhost"})
        assert connection.getresponse().status == 404
        connection.close()
    assert trusting.callers(path, 1) == [f"{CALLER}:0"]


def test_connections_to_the_server_stay_open(kind: str, assigner_dir: Path, tmp_path: Path) -> None:
    with (
        logged(assigner_dir, tmp_path / "log.txt", "--no-engine-process") as found,
        before(kind, found.server) as running,
    ):
        for _ in range(3):
            with Wire(running.port) as wire:
                for _ in range(10):
                    wire.write([b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"])
                    assert wire.reply().status == 404
        callers = found.callers("/nothing", 30)
    assert len(callers) == 30
    assert len(set(callers)) <= 6  # two servers for each of the callers


def test_refusals_of_the_server_come_through(kind: str, trusting: Logged) -> None:
    head = b"POST /v2/models/loss/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with before(kind, trusting.server) as running:
        for length, status, word in ((300 * MIB, 413, "the limit is"), (1000, 408, "too slowly")):
            with Wire(running.port) as wire:
                wire.write([head % length, b"{"])
                reply = wire.reply()
            assert reply.status == status
            assert list(json.loads(reply.body)) == ["error"]
            assert word in reply.body.decode()


def test_servers_are_restarted_and_no_request_fails(kind: str, assigner_dir: Path) -> None:
    cases = [Case("assigner", TINY, "binary"), Case("assigner", SMALL, "gzip")]
    results = roll(assigner_dir, cases, rounds=1, connections=4, kind=kind)
    assert results["failed"] == []
    assert (results["proxy"], results["restarts"]) == (kind, 2)
    assert results["requests"] > 50


@pytest.fixture
def configurations(tmp_path: Path) -> Path:
    """The proxies' configurations, but that haproxy answers as in Ray Serve where a server did not."""
    (tmp_path / "500.http").write_bytes(RAYS)
    text = (DEPLOY / "haproxy.cfg").read_text()
    files = "".join(f"    errorfile {status} {tmp_path / '500.http'}\n" for status in (502, 503, 504))
    (tmp_path / "haproxy.cfg").write_text(text.replace("    mode http\n", f"    mode http\n{files}"))
    shutil.copy(DEPLOY / "nginx.conf", tmp_path)
    return tmp_path


def test_clients_outlive_a_server_that_dies_with_their_requests(
    kind: str, trusting: Logged, assigner_dir: Path, configurations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the time until the proxy reaches another one."""
    monkeypatch.setattr("benchmarks.proxy.DEPLOY", configurations)
    later, arrays = free_port(), tuple(assigner_inputs().values())
    patience = RetryPolicy(tries=1000, longest_delay=0.2)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(serving(assigner_dir, "--threads", "1"))
        url = f"127.0.0.1:{stack.enter_context(proxy(kind, [first.port, later])).port}"
        patient = stack.enter_context(AssignerClient(url, retry=patience, thin=False))
        impatient = stack.enter_context(AssignerClient(url, retry=RetryPolicy(tries=1), thin=False))
        expected = patient.assign(*arrays)
        first.process.send_signal(signal.SIGSTOP)
        calls = [client.submit(client.assign, *arrays) for client in (patient, impatient)]
        time.sleep(0.3)  # until they wait for it
        first.process.kill()
        with pytest.raises(ServerError) as caught:
            calls[1].result(timeout=120)
        assert caught.value.status == {"haproxy": 500, "nginx": 502}[kind]
        stack.enter_context(relay(Live("127.0.0.1", trusting.server.port, trusting.server.process), port=later))
        assert_equal(calls[0].result(timeout=120), expected)


def seconds(file: str, setting: str) -> list[int]:
    """Values of a setting in a configuration."""
    found = re.findall(rf"^\s*{setting}\s+(\d+)s;?$", (DEPLOY / file).read_text(), re.MULTILINE)
    assert found, setting
    return [int(value) for value in found]


def test_proxies_are_more_patient_than_servers_with_callers_and_less_with_connections() -> None:
    client_timeout = Settings.model_fields["client_timeout"].default
    for setting in ("client_header_timeout", "client_body_timeout", "send_timeout", "proxy_read_timeout"):
        assert min(seconds("nginx.conf", setting)) > client_timeout
    for setting in ("timeout http-request", "timeout client", "timeout server"):
        assert min(seconds("haproxy.cfg", setting)) > client_timeout
    assert max(seconds("nginx.conf", "keepalive_timeout")) < KEEP_ALIVE_SECONDS
    assert max(seconds("haproxy.cfg", "timeout http-keep-alive")) < KEEP_ALIVE_SECONDS
    (purged,) = re.findall(r"pool-purge-delay (\d+)s", (DEPLOY / "haproxy.cfg").read_text())
    assert int(purged) < KEEP_ALIVE_SECONDS
