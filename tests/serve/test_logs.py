"""Logs: who asked and when, and a server that goes on when nobody reads what it writes."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.conftest import ROOT, Live, assigner_inputs, binary_rows
from tests.serve.test_operation import free_port, samples
from tests.served import POLL_SECONDS
from yolo_assigner.serve.logs import KEPT_BYTES, NonBlockingStream
from yolo_assigner.serve.process.child import start as start_engines

PIPE_BYTES = 4096
DROPPED = ("yolo_assigner_log_records_dropped_total", ())
PATIENCE = 60.0  # seconds for what takes milliseconds


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that takes nothing more before somebody reads."""
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(into, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(into, b"." * PIPE_BYTES):
            pass
    os.set_blocking(into, True)
    yield out, into
    for end in (out, into):
        with contextlib.suppress(OSError):
            os.close(end)


@contextlib.contextmanager
def serving(artifacts: Path, *words: str, output: int | None = None, shell: str = 'exec "$@"') -> Iterator[Live]:
    """A server that writes both streams to a descriptor, unless the shell leads them elsewhere; killed at the end."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "yolo_assigner",
        "serve",
        "--artifacts",
        str(artifacts),
        "--port",
        str(port),
        "--threads",
        "1",
    ]
    process = subprocess.Popen(
        ["/bin/sh", "-c", shell, "sh", *command, *words],
        stdout=output,
        stderr=output,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    live = Live("127.0.0.1", port, process)
    try:
        wait_until_ready(live)
        yield live
    finally:
        process.kill()
        process.wait()


def wait_until_ready(live: Live) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            if live.send("GET", "/v2/health/ready").status == 200:
                return
        assert live.process.poll() is None, "it has ended"
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)


def infers(live: Live) -> None:
    rows, blob = binary_rows(assigner_inputs())
    assert live.infer("assigner", {"inputs": rows}, blob).status == 200


def refuse(live: Live, count: int, length: int = 1) -> None:
    """Send requests that get a line in the log, of at least a length, each."""
    connection = http.client.HTTPConnection(live.host, live.port, timeout=PATIENCE)
    for _ in range(count):
        connection.request("GET", f"/{'n' * length}")
        reply = connection.getresponse()
        reply.read()
        assert reply.status == 404
    connection.close()


def test_nobody_reads_the_log(assigner_dir: Path, full_pipe: tuple[int, int]) -> None:
    """Requests are answered and the server stops in time; what is dropped is counted and said to the next reader."""
    out, into = full_pipe
    port, length = free_port(), 2000
    with serving(assigner_dir, "--metrics-port", str(port), output=into) as live:
        refuse(live, 2 * KEPT_BYTES // length, length)
        infers(live)
        dropped = samples(port)[DROPPED]
        assert KEPT_BYTES // length // 2 < dropped < 2 * KEPT_BYTES // length
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(PATIENCE) == 0
    os.close(into)
    assert b"records were dropped" not in read_all(out)


def read_all(out: int) -> bytes:
    with open(out, "rb", closefd=False) as file:
        return file.read()


def test_a_reader_that_comes_back_is_told_what_it_missed(assigner_dir: Path, full_pipe: tuple[int, int]) -> None:
    out, into = full_pipe
    port, length = free_port(), 2000
    with serving(assigner_dir, "--metrics-port", str(port), output=into) as live:
        os.close(into)
        refuse(live, 2 * KEPT_BYTES // length, length)
        dropped = int(samples(port)[DROPPED])
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(read_all(out)))
        reader.start()
        time.sleep(1)
        refuse(live, 1)
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(PATIENCE) == 0
        reader.join(PATIENCE)
    lines = read[0].decode().splitlines()
    (note,) = [index for index, line in enumerate(lines) if "records were dropped" in line]
    assert f"WARNING serve [-]: {dropped} log records were dropped" in lines[note]
    kept = [index for index, line in enumerate(lines) if "GET /nn" in line]
    assert len(kept) + dropped == 2 * KEPT_BYTES // length
    assert max(kept) < note < next(index for index, line in enumerate(lines) if "GET /n 404" in line)


def test_a_second_signal_ends_a_server_whose_log_nobody_reads(assigner_dir: Path, full_pipe: tuple[int, int]) -> None:
    with serving(assigner_dir, "--lame-duck-seconds", "60", output=full_pipe[1]) as live:
        live.process.send_signal(signal.SIGTERM)
        while live.send("GET", "/v2/health/ready").status == 200:
            time.sleep(0.01)
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_a_start_that_fails_ends_although_nobody_reads_why(tmp_path: Path, full_pipe: tuple[int, int]) -> None:
    command = [sys.executable, "-m", "yolo_assigner", "serve", "--artifacts", str(tmp_path / "nothing")]
    done = subprocess.run(command, stderr=full_pipe[1], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 2


STREAMS = {
    "closed": 'exec "$@" >&- 2>&-',
    "stdin closed too": 'exec "$@" <&- >&- 2>&-',
    "disk full": 'exec "$@" >/dev/full 2>/dev/full',
    "reader gone": 'exec "$@"',
}


@pytest.mark.parametrize("streams", STREAMS)
def test_streams_that_cannot_be_written(assigner_dir: Path, streams: str) -> None:
    """Neither the start nor a request minds, nor do the engines, nor the end."""
    out, into = os.pipe()
    os.close(out)
    with os.fdopen(into), serving(assigner_dir, output=into, shell=STREAMS[streams]) as live:
        refuse(live, 3)
        infers(live)
        held = [str(Path(f"/proc/{live.process.pid}/fd/{number}").readlink()) for number in (1, 2)]
        assert not [path for path in held if path.startswith("socket:")]
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(PATIENCE) == 0


def test_native_code_of_the_engines_never_waits_for_the_reader(
    full_pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written past Python's streams is bounded, too."""
    stream = NonBlockingStream(full_pipe[1])
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(stream, "utf-8", line_buffering=True))
    says = f"import os; [os.write(2, b'native {'n' * 1000}\\n') for _ in range({2 * KEPT_BYTES // 1000})]"
    process = start_engines([sys.executable, "-c", says], 0)
    assert process.wait(PATIENCE) == 0
    deadline = time.monotonic() + PATIENCE
    while process.stdout is not None and not process.stdout.closed:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert KEPT_BYTES // 1000 // 2 < stream.dropped < 2 * KEPT_BYTES // 1000
    os.close(full_pipe[0])
    stream.drain(PATIENCE)  # nothing is to be written later, to whatever gets this descriptor then


FORWARDED = {"X-Forwarded-For": "198.51.100.1, 203.0.113.7"}


@pytest.mark.parametrize(
    ("words", "peer"),
    [
        ((), r"127\.0\.0\.1:\d+"),
        (("--trusted-proxy", "192.0.2.0/24"), r"127\.0\.0\.1:\d+"),
        (("--trusted-proxy", "192.0.2.0/24", "--trusted-proxy", "127.0.0.1"), r"203\.0\.113\.7:0"),
    ],
)
def test_lines_say_when_and_who(assigner_dir: Path, words: tuple[str, ...], peer: str) -> None:
    out, into = os.pipe()
    with serving(assigner_dir, "--no-engine-process", *words, output=into) as live:
        os.close(into)
        assert live.send("GET", "/nothing", headers=FORWARDED).status == 404
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(PATIENCE) == 0
    log = read_all(out).decode()
    line = next((line for line in log.splitlines() if "GET /nothing" in line), log)
    os.close(out)
    pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} INFO serve.access \[\w+\]: "
    assert re.fullmatch(pattern + r"GET /nothing 404 in [\d.]+ ms from " + peer, line), line
