"""A real server process that is measured, watched, stopped and killed. Linux only."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

READY_SECONDS = 120.0
SCHEME = "serving on http://"
SEGMENT = "/memfd:"  # of memory that both processes see
PEAK_SECONDS = 0.002


class Served:
    """``yolo-assigner serve`` in a process of its own.

    Args:
        process: As started by :func:`start`.
        port: On which it listens, on 127.0.0.1.
    """

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def memory(self) -> float:
        """MiB of memory of all its processes."""
        return resident(self.process.pid) / 2**20

    def descriptors(self) -> int:
        """Files and sockets that they have open."""
        return descriptors(self.process.pid)

    def segments(self) -> int:
        """Descriptors of memory that they share."""
        return segments(self.process.pid)

    def wait_until_ready(self) -> None:
        """Wait for its models.

        Raises:
            RuntimeError: It ended, or took too long.
        """
        wait_until_ready(self.port, self.process)

    def stop(self) -> int:
        """Ask it to end, as an orchestrator does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def close(self) -> None:
        """End it, however it stands."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def wait_until_ready(port: int, process: subprocess.Popen[str]) -> None:
    """Wait until what listens on a port of this machine says that it can be used.

    Raises:
        RuntimeError: The process ended, or took too long.
    """
    deadline = time.monotonic() + READY_SECONDS
    while not _is_ready(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"nothing got ready on port {port}; the reason is above")
        time.sleep(0.02)


def _is_ready(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def start(
    artifacts: Path, *words: str, port: int = 0, through: Sequence[str] = (), errors: int | None = None
) -> Served:
    """Start a server and wait until it listens; its models may still be loading.

    Args:
        artifacts: Folder with exported models.
        words: More of its command line.
        port: 0 takes a free one.
        through: Beginning of a command that becomes the server.
        errors: Descriptor of its standard error; None: that of this process.

    Raises:
        RuntimeError: It did not start; its reason is on standard error.
    """
    command = [
        sys.executable,
        "-m",
        "yolo_assigner",
        "serve",
        "--artifacts",
        str(artifacts),
        "--port",
        str(port),
        *words,
    ]
    process = subprocess.Popen([*through, *command], stdout=subprocess.PIPE, stderr=errors, text=True)
    line = process.stdout.readline() if process.stdout else ""
    if not line.startswith(SCHEME):
        raise RuntimeError(f"the server did not start; it said {line!r}")
    return Served(process, int(line.rpartition(":")[2]))


@contextmanager
def serving(artifacts: Path, *words: str, through: Sequence[str] = (), errors: int | None = None) -> Iterator[Served]:
    """A server that is ready, and is gone in the end. Arguments as for :func:`start`."""
    server = start(artifacts, *words, through=through, errors=errors)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


def processes(pid: int) -> list[int]:
    """A process and its children."""
    with suppress(FileNotFoundError):
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())]
    return [pid]


def resident(pid: int) -> int:
    """Bytes of memory of a process and its children. What they share by segments counts once, libraries each time."""
    private, shared = 0, [0]
    for process in processes(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
            fields = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
            private += fields.get("RssAnon", 0) + fields.get("RssFile", 0)
            shared.append(fields.get("RssShmem", 0))
    return 1024 * (private + max(shared))


def peak_resident(pid: int, work: Callable[[], object]) -> int:
    """The most of :func:`resident` while something is done, looked at every two milliseconds."""
    done = threading.Event()
    seen = [resident(pid)]

    def look() -> None:
        while not done.wait(PEAK_SECONDS):
            seen.append(resident(pid))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        work()
    finally:
        done.set()
        watching.join()
    return max(*seen, resident(pid))


def descriptors(pid: int) -> int:
    """Files and sockets that a process and its children have open, but for segments."""
    return sum(1 for target in _opened(pid) if not target.startswith(SEGMENT))


def segments(pid: int) -> int:
    """Descriptors of segments that a process and its children have open."""
    return sum(1 for target in _opened(pid) if target.startswith(SEGMENT))


def _opened(pid: int) -> list[str]:
    targets = []
    for process in processes(pid):
        with suppress(FileNotFoundError):
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed meanwhile
                    targets.append(str(descriptor.readlink()))
    return targets
