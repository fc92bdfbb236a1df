"""Compressed replies, for callers behind slow lines.

They are switched off by default: client libraries ask for gzip unconditionally, and floats take seconds to compress and
shrink little.

Starlette's ``GZipMiddleware`` is not used: it searches ``Accept-Encoding`` for the letters ``gzip``, so that it
compresses for ``gzip;q=0`` and not for ``GZIP``; and it removes the ``Content-Length`` of replies in parts, as all with
tensors are, by which a caller sees that a reply is complete.
"""

from __future__ import annotations

import asyncio
import gzip

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LEAST_BYTES = 1024  # compressing less gains nothing
LEVEL = 1  # higher levels take several times as long for a few per cent


class CompressReplies:
    """Compresses replies, each as a whole and outside the event loop.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and compress its reply if the caller accepts gzip."""
        if scope["type"] == "http" and _accepts_gzip(Headers(scope=scope)):
            send = _Compressor(send)
        await self._app(scope, receive, send)


class _Compressor:
    """Collects a reply until it is complete, and sends it compressed."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._parts: list[bytes | memoryview] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is None or message["type"] != "http.response.body":
            await self._send(message)
            return
        self._parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            await self._finish(self._start)

    async def _finish(self, start: Message) -> None:
        headers = MutableHeaders(raw=list(start["headers"]))
        parts = self._parts
        headers.add_vary_header("Accept-Encoding")
        if sum(map(len, parts)) >= LEAST_BYTES and "content-encoding" not in headers:
            parts = [await asyncio.to_thread(lambda: gzip.compress(b"".join(parts), LEVEL))]
            headers["Content-Encoding"] = "gzip"
            headers["Content-Length"] = str(len(parts[0]))
        await self._send({**start, "headers": headers.raw})
        for part in parts:
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})


def _accepts_gzip(headers: Headers) -> bool:
    for word in headers.get("accept-encoding", "").lower().split(","):
        name, _, quality = word.partition(";")
        if name.strip() == "gzip":
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
