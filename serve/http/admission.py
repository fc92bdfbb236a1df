"""How much may be under way at one time, decided from a request's headers before its body is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yolo_assigner.serve.errors import BusyError, ServeError
from yolo_assigner.serve.http.body import header_number
from yolo_assigner.serve.http.replies import send_error

UNCOUNTED_BYTES = 2**16  # of a reply: the HTTP server writes on while no more than these wait to be taken
HEAVY = re.compile(r"/v1/\w+|/v2/models/[^/]+(/versions/[^/]+)?/infer")


class Admission:
    """Counts requests and their bytes. Called from the event loop's thread alone.

    Args:
        max_requests: Most requests at one time.
        max_bytes: Most bytes of their bodies. One request is let in alone, however large.

    Attributes:
        requests: Under way now.
        bytes: Of their bodies, or of their replies once these are sent.
        closing: The server is about to stop: replies close their connections.
        draining: It stops: nothing more is let in.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self.requests = self.bytes = 0
        self.closing = self.draining = False

    def enter(self, size: int) -> None:
        """Let a request in.

        Args:
            size: Bytes of its body.

        Raises:
            BusyError: There is no room, or the server stops.
        """
        if self.draining:
            raise BusyError("this server is about to stop; send the request to another one")
        if self.requests >= self._max_requests:
            raise BusyError(f"{self.requests} requests are under way, as many as are allowed; try again in a moment")
        if self.requests and self.bytes + size > self._max_bytes:
            raise BusyError(
                f"requests under way have {self.bytes} bytes, this one has {size}, and {self._max_bytes} are allowed "
                "together; try again in a moment"
            )
        self.requests += 1
        self.bytes += size

    def resize(self, size: int, wanted: int) -> None:
        """A request that is under way turns out to have more bytes, or fewer.

        Args:
            size: Bytes that it has had until now.
            wanted: Bytes of its body.

        Raises:
            BusyError: There is no room for so many; it still has those that it had.
        """
        others = self.bytes - size
        if wanted > size and self.requests > 1 and others + wanted > self._max_bytes:
            raise BusyError(
                f"other requests under way have {others} bytes, this one unpacks to {wanted} or more, and "
                f"{self._max_bytes} are allowed together; try again in a moment"
            )
        self.bytes += wanted - size

    def recount(self, size: int, wanted: int) -> None:
        """A request that is under way has its reply, which is counted in place of its body.

        Args:
            size: Bytes that it has had until now.
            wanted: Bytes of its reply. There may be no room for them, but they are there.
        """
        self.bytes += wanted - size

    def leave(self, size: int) -> None:
        """A request that was let in has ended, one way or another."""
        self.requests -= 1
        self.bytes -= size


class AdmissionGate:
    """Lets requests that compute something in, or answers that there is no room, without reading their bodies.

    Args:
        app: What is behind it.
        admission: What is under way.
        unknown_size: Bytes that a body of unknown length may have.
    """

    def __init__(self, app: ASGIApp, admission: Admission, unknown_size: int) -> None:
        self._app = app
        self._admission = admission
        self._unknown_size = unknown_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold a place for a request from its headers to the end of its reply."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        closing = self._closing(send) if self._admission.closing else send
        if not HEAVY.fullmatch(scope["path"]):
            await self._app(scope, receive, closing)
            return
        try:
            length = header_number(Headers(scope=scope), "content-length")
            # No more than the limit: what is over it is refused right away.
            held = Reservation(
                self._admission, min(self._unknown_size if length is None else length, self._unknown_size)
            )
        except ServeError as error:
            await send_error(error, scope, receive, closing)
            return
        try:
            await self._app({**scope, RESERVATION: held}, receive, _until_taken(held, self._closing(send)))
        finally:
            held.leave()

    def _closing(self, send: Send) -> Send:
        """Tell callers of a server that stops to use another connection next time."""

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._admission.closing:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        return send_closing


def _until_taken(held: Reservation, send: Send) -> Send:
    """Count a reply in place of its request's body, and return from its end only when the caller has taken nearly all.

    The HTTP server waits for that before each part of a reply, but not after the last one.
    """

    async def send_and_wait(message: Message) -> None:
        if message["type"] == "http.response.start":
            length = header_number(Headers(raw=message.get("headers", [])), "content-length")
            if length is not None:
                held.become_reply(length)
        elif len(message.get("body", b"")) > UNCOUNTED_BYTES and not message.get("more_body", False):
            await send({**message, "more_body": True})
            message = {"type": "http.response.body", "body": b""}
        await send(message)

    return send_and_wait


RESERVATION = "yolo_assigner.serve.http.admission"  # in the ASGI scope


class Room(Protocol):
    """What is held of; :class:`yolo_assigner.serve.http.admission.Admission`."""

    def enter(self, size: int) -> None:
        """Let a request in, or raise."""

    def resize(self, size: int, wanted: int) -> None:
        """Let it have more or fewer bytes, or raise."""

    def recount(self, size: int, wanted: int) -> None:
        """It has a reply of so many bytes in place of its body."""

    def leave(self, size: int) -> None:
        """It has ended."""


class Reservation:
    """A place for one request, from its headers to the end of its reply.

    Args:
        room: Where.
        size: Bytes, as far as is known yet.

    Raises:
        BusyError: There is no room.
    """

    def __init__(self, room: Room, size: int) -> None:
        self._room, self._size = room, size
        room.enter(size)

    def become(self, size: int) -> None:
        """Hold so many bytes from now on.

        Raises:
            BusyError: There is no room for them.
        """
        self._room.resize(self._size, size)
        self._size = size

    def become_reply(self, size: int) -> None:
        """Hold the bytes of the reply from now on, in place of the body's."""
        self._room.recount(self._size, size)
        self._size = size

    def leave(self) -> None:
        """Give the place back."""
        self._room.leave(self._size)


def holder(scope: Scope) -> Callable[[int], None]:
    """What the body of a request must tell its size once that is known."""
    held = scope.get(RESERVATION)
    return held.become if isinstance(held, Reservation) else _nobody


def _nobody(_: int) -> None:
    """Bodies of requests that compute nothing are small and not counted."""
