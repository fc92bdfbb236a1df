"""Client disconnects, and lingering closes of connections on which the client still sends.

A connection that is closed while its caller still sends is reset, and the reply may be lost with it: the caller sees a
broken pipe in place of the reason. So it is closed only after the rest has come and was dropped. Connections that stay
open need nothing: the HTTP server drops the rest of a body by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yolo_assigner.serve.errors import ClientDisconnectedError

TOO_SLOW = 408
LINGER_SECONDS = 30.0  # then a caller that still sends is cut off
Result = TypeVar("Result")


class Linger:
    """Delays the end of an early reply with ``Connection: close`` until the request's body has come.

    Args:
        app: The application behind it.
        seconds: Longest delay.
    """

    def __init__(self, app: ASGIApp, seconds: float = LINGER_SECONDS) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and keep its connection open until its body has come."""
        if scope["type"] != "http" or not _sends_on(scope):
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        await self._app(scope, exchange.receive, exchange.send)
        if exchange.unfinished:
            try:
                async with asyncio.timeout(self._seconds):
                    await exchange.drop_rest()
            except TimeoutError:
                pass
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Exchange:
    """One request and its reply.

    Attributes:
        unfinished: All of the reply was sent but the message that ends it, with which the connection is closed.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        asked = Headers(scope=scope)
        self._closes = scope["http_version"] == "1.0" or _says_close(asked.getlist("connection"))
        self._arriving = True
        self.unfinished = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._arriving = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._closes = self._closes or _says_close(Headers(raw=message["headers"]).getlist("connection"))
            # A caller that was too slow gets no more time.
            self._closes = self._closes and message["status"] != TOO_SLOW
        elif self._closes and self._arriving and not message.get("more_body", False):
            message = {**message, "more_body": True}
            self.unfinished = True
        await self._send(message)

    async def drop_rest(self) -> None:
        """Read the rest of the body."""
        while self._arriving:
            await self.receive()


def _sends_on(scope: Scope) -> bool:
    """Whether the caller sends a body without waiting for an answer to its head."""
    headers = Headers(scope=scope)
    return headers.get("expect") is None and (
        headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    )


def _says_close(values: Iterable[str]) -> bool:
    return any(word.strip().lower() == "close" for value in values for word in value.split(","))


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Await a coroutine, and cancel it when the caller disconnects.

    Args:
        receive: ASGI receive of a request whose body has been read, so that the next message is the disconnect.
        work: The coroutine. A call that an engine has begun runs on, and its result is dropped.

    Raises:
        ClientDisconnectedError: The caller disconnected first.
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
