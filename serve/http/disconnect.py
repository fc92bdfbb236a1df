"""Replies that come before the whole body was sent, on connections that end with them.

A connection that is closed while its caller still sends is reset, and the reply may be lost with it: the caller sees a
broken pipe in place of the reason. So it is closed once the rest has come and was dropped. Connections that stay open
need nothing: the HTTP server drops what is left of a body by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yolo_assigner.serve.errors import ClientDisconnectedError

TOO_SLOW = 408
LINGER_SECONDS = 30.0  # a caller that still sends then is cut off


class Linger:
    """Reads on after such a reply; changes nothing of what is sent.

    Args:
        app: What replies.
        seconds: Longest time to read on.
    """

    def __init__(self, app: ASGIApp, seconds: float = LINGER_SECONDS) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and hold its connection open until its body has come."""
        if scope["type"] != "http" or not _sends_on(scope):
            await self._app(scope, receive, send)
            return
        passed = _Passed(scope, receive, send)
        await self._app(scope, passed.receive, passed.send)
        if passed.held:
            try:
                async with asyncio.timeout(self._seconds):
                    await passed.rest()
            except TimeoutError:
                pass
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Passed:
    """What passed of one request.

    Attributes:
        held: All of the reply was sent but the word that it ends, with which the connection is closed.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        asked = Headers(scope=scope)
        self._closes = scope["http_version"] == "1.0" or _says_close(asked.getlist("connection"))
        self._arriving = True
        self.held = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._arriving = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._closes = self._closes or _says_close(Headers(raw=message["headers"]).getlist("connection"))
            # Whoever is told that the body came too slowly is waited for no longer.
            self._closes = self._closes and message["status"] != TOO_SLOW
        elif self._closes and self._arriving and not message.get("more_body", False):
            message = {**message, "more_body": True}
            self.held = True
        await self._send(message)

    async def rest(self) -> None:
        """Drop what still comes."""
        while self._arriving:
            await self.receive()


def _sends_on(scope: Scope) -> bool:
    """Whether there is a body that the caller sends whatever it is answered."""
    headers = Headers(scope=scope)
    return headers.get("expect") is None and (
        headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    )


def _says_close(values: Iterable[str]) -> bool:
    return any(word.strip().lower() == "close" for value in values for word in value.split(","))


Result = TypeVar("Result")


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Do work, and drop it when its caller hangs up.

    Args:
        receive: ASGI receive of a request whose body has been read; the next message says that the caller is gone.
        work: Cancelled then; what already runs in an engine's thread ends by itself and its result is dropped.

    Raises:
        ClientDisconnectedError: The caller hung up first.
    """
    doing = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({doing, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnectedError
        return doing.result()
    finally:
        for task in (doing, listening):
            task.cancel()
        await asyncio.gather(doing, listening, return_exceptions=True)
        del doing, listening, task  # an error that refers to itself would keep the body's memory


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
