"""``yolo-assigner serve --ray`` in processes that are measured, killed and counted. Linux only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.served import LISTENING, Served, wait_until_ready

MARK = "RAY_CLUSTER_OF_THIS_PROCESS"
ROOT = Path(__file__).parents[3]
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - POSIX shared memory
REPLICA = b"ray::ServeReplica"


class Cluster(Served):
    """A Ray cluster of this machine with the service.

    Args:
        process: The command that started it, and ends it.
        port: Port of Ray's proxy on 127.0.0.1.
        mark: Value of a variable that all its processes have in their environment.
    """

    def __init__(self, process: subprocess.Popen[str], port: int, mark: str) -> None:
        super().__init__(process, port)
        self._mark = mark

    def processes(self, begins: bytes = b"") -> list[int]:
        """Ids of its processes whose command line begins so."""
        return marked(self._mark, begins)


def marked(mark: str, begins: bytes = b"") -> list[int]:
    """Ids of the processes that have a mark in their environment and whose command line begins so."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or ended
            has = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if has and (folder / "cmdline").read_bytes().startswith(begins):
                found.append(int(folder.name))
    return found


def shared_memory() -> set[str]:
    """Names of all objects in shared memory."""
    return {path.name for path in SHARED_MEMORY.iterdir()}


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@contextmanager
def cluster(artifacts: Path, *words: str) -> Iterator[Cluster]:
    """Run a cluster whose replicas have loaded their models, and kill what is left of it at the end.

    Args:
        artifacts: Folder with exported models.
        words: Further arguments of ``yolo-assigner serve``.
    """
    port, mark = free_port(), uuid.uuid4().hex
    command = [sys.executable, "-m", "yolo_assigner", "serve", "--ray", "--artifacts", str(artifacts), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), MARK: mark}
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    running = Cluster(process, port, mark)
    try:
        assert process.stdout is not None
        if not any(line.startswith(LISTENING) for line in process.stdout):  # Ray writes lines of its own
            raise RuntimeError("no cluster was started; the reason is above")
        wait_until_ready(port, process)
        yield running
    finally:
        running.close()
        for pid in running.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
