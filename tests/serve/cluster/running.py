"""``yolo-assigner serve --ray`` in processes that are measured, killed and counted. Linux only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import marked, nothing_left
from tests.served import LISTENING, Served, wait_until_ready

ROOT = Path(__file__).parents[3]
REPLICA = b"ray::ServeReplica"


class Cluster(Served):
    """A Ray cluster of this machine with the service.

    Args:
        process: The command that started it, and ends it.
        port: Port of Ray's proxy on 127.0.0.1.
        mark: Of all its processes, for :func:`tests.processes.marked`.
    """

    def __init__(self, process: subprocess.Popen[str], port: int, mark: str) -> None:
        super().__init__(process, port)
        self._mark = mark

    def processes(self, begins: bytes = b"") -> list[int]:
        """Ids of its processes whose command line begins so."""
        return marked(self._mark, begins)


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@contextmanager
def cluster(artifacts: Path, *words: str) -> Iterator[Cluster]:
    """Run a cluster whose replicas have loaded their models, and check that nothing is left of it.

    Args:
        artifacts: Folder with exported models.
        words: Further arguments of ``yolo-assigner serve``.
    """
    port = free_port()
    command = [sys.executable, "-m", "yolo_assigner", "serve", "--ray", "--artifacts", str(artifacts), *words]
    with nothing_left() as mark:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
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
