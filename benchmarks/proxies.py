"""haproxy and nginx as ``deploy/`` configures them, and ``benchmarks.proxy``, before servers on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.served import wait_until_ready

DEPLOY = Path(__file__).parents[1] / "deploy"
# What is replaced in nginx's configuration, which knows no variables of the environment.
NGINX_LISTEN, NGINX_SERVERS = "listen 8080;", ("server 127.0.0.1:8000 ", "server 127.0.0.1:8001 ")


class Proxy:
    """A proxy that runs.

    Args:
        kind: ``haproxy``, ``nginx`` or ``python``.
        port: On which it listens, on 127.0.0.1.
        ports: Of the servers; nginx and haproxy take two.
        folder: For nginx's files.
        through: Program before the proxy's that runs it.
    """

    def __init__(self, kind: str, port: int, ports: Sequence[int], folder: Path, through: Sequence[str]) -> None:
        self.port = port
        self._kind, self._ports, self._configuration = kind, ports, folder / "nginx.conf"
        environment = os.environ | {"PROXY_ADDRESS": f"127.0.0.1:{port}"}
        for name, server in zip(("FIRST_SERVER", "SECOND_SERVER"), ports, strict=False):
            environment[name] = f"127.0.0.1:{server}"
        match kind:
            case "haproxy":
                command = ["haproxy", "-f", str(DEPLOY / "haproxy.cfg"), "-db", "-q"]
            case "nginx":
                self._write(ports)
                own = f"daemon off; pid {folder / 'pid'}; error_log stderr crit;"
                command = ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(self._configuration), "-g", own]
            case _:
                command = [sys.executable, "-m", "benchmarks.proxy", str(port), *map(str, ports)]
        self.process = subprocess.Popen([*through, *command], env=environment, text=True)

    def use(self, ports: Sequence[int]) -> None:
        """Say which servers are to be used; those that ask the servers themselves need not be told."""
        if self._kind == "nginx":
            self._write(ports)
            self.process.send_signal(signal.SIGHUP)

    def _write(self, ports: Sequence[int]) -> None:
        text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
        changes = {NGINX_LISTEN: f"listen 127.0.0.1:{self.port};"}
        for old, port in zip(NGINX_SERVERS, self._ports, strict=True):
            changes[old] = f"server 127.0.0.1:{port} {'' if port in ports else 'down '}"
        for old, new in changes.items():
            if text.count(old) != 1:
                raise RuntimeError(f"deploy/nginx.conf has {old!r} {text.count(old)} times in place of once")
            text = text.replace(old, new)
        self._configuration.write_text(text, encoding="utf-8")


@contextmanager
def proxy(kind: str, ports: Sequence[int], through: Sequence[str] = ()) -> Iterator[Proxy]:
    """A proxy before servers that are ready; gone in the end. Arguments are those of :class:`Proxy`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        running = Proxy(kind, port, ports, Path(folder), through)
        try:
            wait_until_ready(port, running.process)
            yield running
        finally:
            running.process.terminate()  # nginx's workers end with it only then
            running.process.wait()
