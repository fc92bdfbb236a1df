"""A server in a process of its own that is measured, stopped and killed. Linux only."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

READY_SECONDS = 120.0
POLL_SECONDS = 0.1  # a server that is asked much more often is slower to start
LISTENING = "serving on http://"
SEGMENT = "/memfd:"  # how Linux names the memory that the server shares with the engine process


class Served:
    """``yolo-assigner serve`` in a process of its own.

    Args:
        process: The process that :func:`start` started.
        port: Port on 127.0.0.1 on which it listens.
    """

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def memory(self) -> float:
        """Resident memory of all its processes in MiB."""
        return resident(self.process.pid) / 2**20

    def descriptors(self) -> int:
        """Number of open files and sockets of all its processes, without shared segments."""
        return sum(not target.startswith(SEGMENT) for target in _open_files(self.process.pid))

    def segments(self) -> int:
        """Number of descriptors of shared segments in all its processes."""
        return sum(target.startswith(SEGMENT) for target in _open_files(self.process.pid))

    def wait_until_ready(self) -> None:
        """Wait until its models are loaded.

        Raises:
            RuntimeError: The process ended or was not ready in time.
        """
        wait_until_ready(self.port, self.process)

    def stop(self) -> int:
        """Send SIGTERM, as an orchestrator does, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)

    def close(self) -> None:
        """Kill the process if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def wait_until_ready(port: int, process: subprocess.Popen[str]) -> None:
    """Wait until ``/v2/health/ready`` on a port of this machine answers 200.

    Raises:
        RuntimeError: The process ended or was not ready in time.
    """
    deadline = time.monotonic() + READY_SECONDS
    while not _is_ready(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"nothing got ready on port {port}; the reason is above")
        time.sleep(POLL_SECONDS)


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
        words: Further arguments of its command line.
        port: Port to listen on; 0 takes a free one.
        through: First words of a command that executes the server's.
        errors: Descriptor for its standard error; None inherits that of this process.

    Raises:
        RuntimeError: It did not start; its reason is on standard error.
    """
    serve = (sys.executable, "-m", "yolo_assigner", "serve", "--artifacts", str(artifacts), "--port", str(port))
    process = subprocess.Popen([*through, *serve, *words], stdout=subprocess.PIPE, stderr=errors, text=True)
    line = process.stdout.readline() if process.stdout else ""
    if not line.startswith(LISTENING):
        raise RuntimeError(f"the server did not start; it said {line!r}")
    return Served(process, int(line.rpartition(":")[2]))


@contextmanager
def serving(artifacts: Path, *words: str, through: Sequence[str] = (), errors: int | None = None) -> Iterator[Served]:
    """Run a server that is ready, and kill it at the end if it still runs. Arguments as for :func:`start`."""
    server = start(artifacts, *words, through=through, errors=errors)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


def processes(pid: int) -> list[int]:
    """Ids of a process and its children."""
    with suppress(FileNotFoundError):
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())]
    return [pid]


def resident(pid: int) -> int:
    """Resident memory of a process and its children in bytes; shared segments count once, libraries each time."""
    private, shared = 0, [0]
    for process in processes(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
            fields = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
            private += fields.get("RssAnon", 0) + fields.get("RssFile", 0)
            shared.append(fields.get("RssShmem", 0))
    return 1024 * (private + max(shared))


def _open_files(pid: int) -> list[str]:
    targets = []
    for process in processes(pid):
        with suppress(FileNotFoundError):
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed meanwhile
                    targets.append(str(descriptor.readlink()))
    return targets
