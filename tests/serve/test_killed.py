"""Servers and workers that are killed while they compute; a shell restarts the server, as containers do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferRequestedOutput
from tritonclient.utils import shared_memory

from tests.exports import exported
from tests.serve.conftest import ROOT, Live, binary_rows, loss_inputs
from tests.serve.shared_memory.conftest import placed_inputs, spans
from tests.serve.test_operation import free_port
from yolo_assigner.serve.shared_memory.object import DIRECTORY

pytestmark = pytest.mark.skipif(not DIRECTORY.is_dir(), reason="shared memory cannot be looked at like files here")
PREFIX = f"yolo-assigner-killed-{os.getpid()}-"
# What `restart: unless-stopped` and systemd's `Restart=always` do.
SUPERVISOR = 'while :; do "$@" & echo $! > "$PID_FILE"; wait $!; done'
# About a second of work on one core: time enough to be killed in.
LARGE = {"images": 16, "slots": 100, "side": 1024}


class Supervised(NamedTuple):
    """A server that is started again whenever it ends."""

    live: Live
    pid_file: Path
    temporary: Path

    @property
    def pid(self) -> int:
        """Process identifier of the current server."""
        return int(self.pid_file.read_text())

    def wait_until_ready(self) -> None:
        """Wait until the server is ready."""
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError, HTTPException):
                if self.live.send("GET", "/v2/health/ready").status == 200:
                    return
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def worker(self) -> int:
        """Process identifier of the worker."""
        (child,) = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(child)

    @contextlib.contextmanager
    def computing(self) -> Iterator[socket.socket]:
        """Send a large request, and wait until an engine has started on it."""
        rows, blob = binary_rows(loss_inputs(**LARGE))
        text = json.dumps({"inputs": rows}).encode()
        head = f"POST /v2/models/loss/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(text) + len(blob)}\r\n"
        head += f"inference-header-content-length: {len(text)}\r\n\r\n"
        worker = self.worker()
        with socket.create_connection((self.live.host, self.live.port), timeout=120) as connection:
            before = engine_seconds(worker)
            connection.sendall(head.encode() + text + blob)
            while engine_seconds(worker) < before + 0.1:
                time.sleep(0.005)
            assert self.leavable(self.pid) == self.leavable(worker) == []
            yield connection

    def kill_while_computing(self, sign: int) -> int:
        """End the server as soon as an engine has a large request, and return its process identifier."""
        pid, worker = self.pid, self.worker()
        with self.computing() as connection:
            os.kill(pid, sign)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(100) == b""  # it was in the middle of it
        wait_until_gone(worker)
        return pid

    def leavable(self, pid: int) -> list[str]:
        """Objects of shared memory and temporary files that a process has open or mapped, and that could stay."""
        process = Path(f"/proc/{pid}")
        opened = []
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                opened.append(str(descriptor.readlink()))
        mapped = [line.split(maxsplit=5)[5] for line in (process / "maps").read_text().splitlines() if "/" in line]
        places = (str(DIRECTORY), str(self.temporary))
        return sorted({path for path in opened + mapped if path.startswith(places)})


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a worker whose server has gone."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "(zombie)" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def engine_seconds(pid: int) -> float:
    """Return the processor time of all threads of a process except the main one."""
    ticks = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        if int(task.name) != pid:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    folder = tmp_path_factory.mktemp("supervised")
    (folder / "tmp").mkdir()
    port = free_port()
    words = (
        "--artifacts",
        exported("loss", "sparse"),
        "--port",
        str(port),
        "--threads",
        "1",
        "--shared-memory",
        PREFIX,
    )
    command = ["sh", "-c", SUPERVISOR, "supervisor", sys.executable, "-m", "yolo_assigner", "serve", *map(str, words)]
    environment = {"PYTHONPATH": str(ROOT), "PID_FILE": str(folder / "pid"), "TMPDIR": str(folder / "tmp")}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, text=True, cwd=folder, env=os.environ | environment, start_new_session=True
    )
    server = Supervised(Live("127.0.0.1", port, process), folder / "pid", folder / "tmp")
    try:
        server.wait_until_ready()
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


SIGNS = pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV], ids=["killed", "crashed in native code"])


@SIGNS
def test_engines_that_die_are_started_again(supervised: Supervised, sign: int) -> None:
    """Only the request that was computed fails; the one behind it is answered without being sent again."""
    rows, blob = binary_rows(loss_inputs())
    expected = supervised.live.infer("loss", {"inputs": rows}, blob).body
    server, worker = supervised.pid, supervised.worker()
    with supervised.computing() as connection, ThreadPoolExecutor() as callers:
        behind = callers.submit(supervised.live.infer, "loss", {"inputs": rows}, blob)
        time.sleep(0.1)
        os.kill(worker, sign)
        reply = b""
        while not reply.endswith(b'"}'):
            reply += connection.recv(2**16)
        assert reply.startswith(b"HTTP/1.1 500 "), reply
        assert b"process ended while it computed this request" in reply
        assert supervised.live.infer("loss", {"inputs": rows}, blob).body == expected
        assert behind.result().body == expected
    assert supervised.pid == server
    assert supervised.worker() != worker
    statistics = supervised.live.send("GET", "/v2/models/loss/stats").json["model_stats"][0]
    assert statistics["inference_count"] >= 3  # those of the first process count


def test_regions_outlive_the_engines(supervised: Supervised) -> None:
    arrays, name = loss_inputs(), "kept"
    _, size = spans({key: array.nbytes for key, array in arrays.items()})
    handle = shared_memory.create_shared_memory_region(name, f"/{PREFIX}{name}", size)
    try:
        with InferenceServerClient(supervised.live.url, network_timeout=60) as client:
            client.register_system_shared_memory(name, f"/{PREFIX}{name}", size)
            inputs = placed_inputs(handle, name, arrays)
            expected = client.infer("loss", inputs).as_numpy("loss")
            worker = supervised.worker()
            with supervised.computing():
                os.kill(worker, signal.SIGKILL)
            np.testing.assert_array_equal(client.infer("loss", inputs).as_numpy("loss"), expected)
            assert [region["name"] for region in client.get_system_shared_memory_status()] == [name]
            client.unregister_system_shared_memory()
    finally:
        shared_memory.destroy_shared_memory_region(handle)


@SIGNS
def test_the_next_request_is_served(supervised: Supervised, sign: int) -> None:
    """The next server takes the same port, though the system still knows old connections; no file is left."""
    rows, blob = binary_rows(loss_inputs())
    before = supervised.live.infer("loss", {"inputs": rows}, blob).body
    dead = supervised.kill_while_computing(sign)
    supervised.wait_until_ready()
    assert supervised.pid != dead
    assert supervised.live.infer("loss", {"inputs": rows}, blob).body == before
    assert list(DIRECTORY.glob(f"*{PREFIX}*")) == []
    assert list(supervised.temporary.iterdir()) == []


def test_shared_memory_outlives_the_server(supervised: Supervised) -> None:
    """Objects keep their values, can be registered again, and go when their client unlinks them."""
    arrays, name = loss_inputs(), "survivor"
    _, size = spans({key: array.nbytes for key, array in arrays.items()})
    handle = shared_memory.create_shared_memory_region(name, f"/{PREFIX}{name}", size + 64)
    try:
        with InferenceServerClient(supervised.live.url) as client:
            client.register_system_shared_memory(name, f"/{PREFIX}{name}", size + 64)
            inputs = placed_inputs(handle, name, arrays)
            output = InferRequestedOutput("loss")
            output.set_shared_memory(name, 4, size)
            client.infer("loss", inputs, outputs=[output])
            expected = shared_memory.get_contents_as_numpy(handle, np.float32, [1], size).copy()
        supervised.kill_while_computing(signal.SIGKILL)
        supervised.wait_until_ready()
        assert (DIRECTORY / f"{PREFIX}{name}").stat().st_size == size + 64
        shared_memory.set_shared_memory_region(handle, [np.full(1, np.nan, np.float32)], size)
        with InferenceServerClient(supervised.live.url) as client:
            assert client.get_system_shared_memory_status() == []
            client.register_system_shared_memory(name, f"/{PREFIX}{name}", size + 64)
            client.infer("loss", inputs, outputs=[output])
        np.testing.assert_array_equal(shared_memory.get_contents_as_numpy(handle, np.float32, [1], size), expected)
    finally:
        shared_memory.destroy_shared_memory_region(handle)
    assert not list(DIRECTORY.glob(f"{PREFIX}*"))
