"""A small reverse proxy over several servers: ``python -m benchmarks.proxy PORT SERVER_PORT ...``.

It probes ``/v2/health/ready`` of each server every tenth of a second, and sends requests to the ready ones in turn. A
request whose connection cannot be made goes to the next server; one that was sent is never sent again. It stands in for
haproxy or nginx where these are not installed. :func:`proxy` runs it, or one of those as ``deploy/`` configures them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from tests.served import wait_until_ready

PROBE_SECONDS, PROBE_TIMEOUT = 0.1, 1.0
MOST_BYTES = 2**28
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length"}
DEPLOY = Path(__file__).parents[1] / "deploy"
# Replaced in nginx's configuration, which knows no variables of the environment.
NGINX_LISTEN, NGINX_SERVERS = "listen 8080;", ("server 127.0.0.1:8000 ", "server 127.0.0.1:8001 ")


class Forwarder:
    """The reverse proxy of this module.

    Args:
        port: Port to listen on, on 127.0.0.1.
        ports: Ports of the servers, on 127.0.0.1.
    """

    def __init__(self, port: int, ports: Sequence[int]) -> None:
        self._port = port
        self._up = dict.fromkeys(ports, False)
        self._turns = itertools.cycle(ports)

    async def run(self) -> None:
        """Listen until cancelled."""
        application = web.Application(client_max_size=MOST_BYTES)
        application.router.add_route("*", "/{path:.*}", self._forward)
        runner = web.AppRunner(application, access_log=None, auto_decompress=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port).start()
        async with aiohttp.ClientSession(auto_decompress=False) as self._session:
            probes = [asyncio.create_task(self._probe(port)) for port in self._up]
            await asyncio.gather(*probes)

    async def _probe(self, port: int) -> None:
        while True:
            self._up[port] = await self._is_ready(port)
            await asyncio.sleep(PROBE_SECONDS)

    async def _is_ready(self, port: int) -> bool:
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT)
        try:
            async with self._session.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=timeout) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _forward(self, request: web.Request) -> web.Response:
        body = await request.read()
        for _ in self._up:
            port = next((port for port in itertools.islice(self._turns, len(self._up)) if self._up[port]), None)
            if port is None:
                break
            try:
                return await self._sent(request, port, body)
            except aiohttp.ClientConnectorError:
                self._up[port] = False  # nothing was sent
            except aiohttp.ClientError as error:
                return web.Response(status=502, text=f"the server on port {port} gave no reply: {error!r}")
        return web.Response(status=503, text="no server is ready")

    async def _sent(self, request: web.Request, port: int, body: bytes) -> web.Response:
        url = f"http://127.0.0.1:{port}{request.path_qs}"
        headers = _end_to_end(request.headers)
        async with self._session.request(request.method, url, headers=headers, data=body) as reply:
            return web.Response(status=reply.status, headers=_end_to_end(reply.headers), body=await reply.read())


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Leave out the headers that concern one connection."""
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)


class Proxy:
    """A proxy in a process of its own.

    Args:
        kind: ``haproxy``, ``nginx`` or ``python``.
        port: Port to listen on, on 127.0.0.1.
        ports: Ports of the servers; nginx and haproxy take two.
        folder: Folder for nginx's files.
        through: First words of a command that executes the proxy's.
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
        """Name the servers to use; proxies that probe the servers themselves ignore it."""
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
    """Run a proxy before ready servers, and end it at the end. Arguments as for :class:`Proxy`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        running = Proxy(kind, port, ports, Path(folder), through)
        try:
            wait_until_ready(port, running.process)
            yield running
        finally:
            running.process.terminate()  # SIGKILL would leave nginx's workers behind
            running.process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxy", description=__doc__)
    parser.add_argument("port", type=int, metavar="PORT")
    parser.add_argument("servers", nargs="+", type=int, metavar="SERVER_PORT")
    options = parser.parse_args()
    asyncio.run(Forwarder(options.port, options.servers).run())
