"""Limits on the requests under way, by number and bytes, enforced from the headers before a body is read."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yolo_assigner.serve.errors import BusyError, ServeError
from yolo_assigner.serve.http.headers import header_number
from yolo_assigner.serve.http.replies import send_error
from yolo_assigner.serve.http.routes import route_of

UNCOUNTED_BYTES = 2**16  # of a reply: the HTTP server accepts more while no more than these wait to be sent
RESERVATION = "yolo_assigner.serve.http.admission"  # key of the ASGI scope


class Admission:
    """Counts requests and their bytes. Called from the event loop's thread alone.

    Args:
        max_requests: Most requests at one time.
        max_bytes: Most bytes of their bodies. A single request is admitted however large it is.

    Attributes:
        requests: Requests under way.
        bytes: Bytes of their bodies, or of their replies once these are sent.
        closing: The server is about to stop: replies close their connections.
        draining: The server stops: no request is admitted.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self.requests = self.bytes = 0
        self.closing = self.draining = False

    def enter(self, size: int) -> None:
        """Admit a request.

        Args:
            size: Bytes of its body.

        Raises:
            BusyError: A limit is reached, or the server stops.
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

    def resize(self, size: int, new_size: int) -> None:
        """Change the size of an admitted request.

        Args:
            size: Bytes that it was counted with.
            new_size: Bytes of its body.

        Raises:
            BusyError: The limit would be exceeded; it is still counted with ``size``.
        """
        others = self.bytes - size
        if new_size > size and self.requests > 1 and others + new_size > self._max_bytes:
            raise BusyError(
                f"other requests under way have {others} bytes, this one unpacks to {new_size} or more, and "
                f"{self._max_bytes} are allowed together; try again in a moment"
            )
        self.bytes += new_size - size

    def recount(self, size: int, new_size: int) -> None:
        """Count the reply of an admitted request in place of its body, without a limit: its memory is in use.

        Args:
            size: Bytes that it was counted with.
            new_size: Bytes of its reply.
        """
        self.bytes += new_size - size

    def leave(self, size: int) -> None:
        """End an admitted request of a size."""
        self.requests -= 1
        self.bytes -= size


class Reservation:
    """The place of one request, from its headers to the end of its reply.

    Args:
        admission: What it is counted in.
        size: Bytes, as far as is known yet.

    Raises:
        BusyError: It is not admitted.
    """

    def __init__(self, admission: Admission, size: int) -> None:
        self._admission, self._size = admission, size
        admission.enter(size)

    def resize(self, size: int) -> None:
        """Reserve so many bytes.

        Raises:
            BusyError: They would exceed the limit.
        """
        self._admission.resize(self._size, size)
        self._size = size

    def become_reply(self, size: int) -> None:
        """Count the bytes of the reply in place of the body's."""
        self._admission.recount(self._size, size)
        self._size = size

    def release(self) -> None:
        """Give the place back."""
        self._admission.leave(self._size)


def resizer(scope: Scope) -> Callable[[int], None]:
    """The function to call with the size of a request's body once it is known, or is about to grow.

    It does nothing for requests that have no reservation: those that compute nothing, whose bodies are small.
    """
    reservation = scope.get(RESERVATION)
    return reservation.resize if isinstance(reservation, Reservation) else lambda _: None


class AdmissionGate:
    """Admits requests to the endpoints that compute something, or refuses them without reading their bodies.

    Args:
        app: The application behind it.
        admission: Counts what is under way.
        unknown_size: Bytes to reserve for a body of unknown length, and the most for any body.
    """

    def __init__(self, app: ASGIApp, admission: Admission, unknown_size: int) -> None:
        self._app = app
        self._admission = admission
        self._unknown_size = unknown_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reserve a place for a request until its reply is sent."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        closing = self._closing(send) if self._admission.closing else send
        route = route_of(scope["path"])
        if route is None or not route.admitted:
            await self._app(scope, receive, closing)
            return
        try:
            length = header_number(Headers(scope=scope), "content-length")
            # A body over the limit is refused as soon as the application reads its headers.
            size = self._unknown_size if length is None else min(length, self._unknown_size)
            reservation = Reservation(self._admission, size)
        except ServeError as error:
            await send_error(error, scope, receive, closing)
            return
        try:
            await self._app({**scope, RESERVATION: reservation}, receive, _until_sent(reservation, self._closing(send)))
        finally:
            reservation.release()

    def _closing(self, send: Send) -> Send:
        """Close the connection after a reply once the server is about to stop."""

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._admission.closing:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        return send_closing


def _until_sent(reservation: Reservation, send: Send) -> Send:
    """Count a reply in place of its request's body, and return from its end only when nearly all of it is sent.

    The HTTP server waits for that before each part of a reply, but not after the last one. So an empty part follows.
    """

    async def send_and_wait(message: Message) -> None:
        if message["type"] == "http.response.start":
            length = header_number(Headers(raw=message.get("headers", [])), "content-length")
            if length is not None:
                reservation.become_reply(length)
        elif len(message.get("body", b"")) > UNCOUNTED_BYTES and not message.get("more_body", False):
            await send({**message, "more_body": True})
            message = {"type": "http.response.body", "body": b""}
        await send(message)

    return send_and_wait
