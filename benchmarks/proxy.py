"""A small reverse proxy over several servers, as plain as can be: ``python -m benchmarks.proxy PORT SERVER_PORT ...``.

It asks each server every tenth of a second whether it is ready, and sends requests to those that are, in turn. One for
which no connection could be made goes to the next server; one that has been sent is never sent again. It stands in for
haproxy or nginx where these are not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import Mapping, Sequence

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

PROBE_SECONDS, PROBE_TIMEOUT = 0.1, 1.0
MOST_BYTES = 2**28
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length"}


class Proxy:
    """Sends requests on.

    Args:
        port: On which it listens, on 127.0.0.1.
        ports: Of the servers, on 127.0.0.1.
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
                self._up[port] = False  # nothing has been sent
            except aiohttp.ClientError as error:
                return web.Response(status=502, text=f"the server on port {port} gave no reply: {error!r}")
        return web.Response(status=503, text="no server is ready")

    async def _sent(self, request: web.Request, port: int, body: bytes) -> web.Response:
        url = f"http://127.0.0.1:{port}{request.path_qs}"
        async with self._session.request(request.method, url, headers=_kept(request.headers), data=body) as reply:
            return web.Response(status=reply.status, headers=_kept(reply.headers), body=await reply.read())


def _kept(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Those that are not about one connection."""
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxy", description=__doc__)
    parser.add_argument("port", type=int, metavar="PORT")
    parser.add_argument("servers", nargs="+", type=int, metavar="SERVER_PORT")
    options = parser.parse_args()
    asyncio.run(Proxy(options.port, options.servers).run())
