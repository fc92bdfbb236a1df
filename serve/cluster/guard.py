"""What stands before Ray Serve's proxy: keys, limits from the headers, and errors in the service's form.

Ray's proxy keeps a body in memory as fast as it comes, however large; answers with plain text where no replica can take
a request; and with an empty reply of 500 where one died. Ray loads :func:`middlewares` in each proxy, and with HAProxy
in each replica, if the environment of its nodes says
``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=yolo_assigner.serve.cluster.guard.middlewares``.
"""

from __future__ import annotations

import os

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yolo_assigner.serve.errors import BusyError, ServeError
from yolo_assigner.serve.http.admission import RESERVATION, Admission, AdmissionGate
from yolo_assigner.serve.http.auth import KeyGuard, Keys, keys_of
from yolo_assigner.serve.http.body import REMEDY, Limit
from yolo_assigner.serve.http.headers import header_number
from yolo_assigner.serve.http.observe import identifier_of
from yolo_assigner.serve.http.replies import error_reply, reply, send_error
from yolo_assigner.serve.settings import Settings, read_settings

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
IMPORT_PATH = f"{__name__}.middlewares"
FAILURES = 400  # statuses from here on
RAY_PATHS = "/-/"  # Ray's own: health and routes of a proxy
DIED = (
    "the replica ended before it answered, or Ray could not reach it; send the request again: inference changes nothing"
)


class NoReplicaReplyError(ServeError):
    """A replica ended before it answered. Inference may be sent again."""

    status = 502


def middlewares() -> list[Middleware]:
    """What Ray is to put before its proxy, with the limits and keys of the environment.

    Raises:
        ValueError: A variable cannot be used.
    """
    settings = read_settings(["--artifacts", "."], os.environ).settings
    return [Middleware(ProxyGuard, settings=settings, keys=keys_of(settings))]


class ProxyGuard:
    """Admits requests to a proxy of Ray's, and turns its errors into ``{"error": "text"}``.

    Args:
        app: The proxy.
        settings: ``max_request_bytes``, ``max_total_bytes`` and ``max_requests`` are those of this proxy.
        keys: Keys that callers need.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys) -> None:
        most = settings.max_request_bytes
        admission = Admission(settings.max_requests, settings.max_total_bytes)
        self._proxy = app
        self._guarded = KeyGuard(AdmissionGate(BoundedBodies(app, most), admission, most), keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it; answer for a replica that did not."""
        if scope["type"] != "http" or scope["path"].startswith(RAY_PATHS):
            await self._proxy(scope, receive, send)
            return
        answer = _Answer(scope, receive, send)
        await self._guarded(answer.scope, receive, answer.send)
        await answer.finish()


class BoundedBodies:
    """Refuses bodies over a limit: from their length, or where that is unknown once they are over it.

    Args:
        app: The application behind it.
        most: Bytes of a body.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._limit = Limit("the body", most, REMEDY)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and tell the application of a caller that hung up when its body gets too large."""
        try:
            self._limit.check(header_number(Headers(scope=scope), "content-length") or 0, "has")
        except ServeError as error:
            await send_error(error, scope, receive, send)
            return
        counted = _Counted(self._limit, receive, send)
        # Ray pickles the scope for the replica, which has places of its own.
        plain = {name: value for name, value in scope.items() if name != RESERVATION}
        await self._app(plain, counted.receive, counted.send)
        if counted.refusal is not None and not counted.answered:
            await send_error(counted.refusal, scope, receive, send)


class _Counted:
    """One request whose body is counted.

    Args:
        limit: Of the body.
        receive: Of the request.
        send: Likewise.

    Attributes:
        refusal: Why the rest of the body is not read; None: it is not over the limit.
        answered: Whether a reply had begun before that.
    """

    def __init__(self, limit: Limit, receive: Receive, send: Send) -> None:
        self._limit, self._receive, self._send = limit, receive, send
        self._received = 0
        self.refusal: ServeError | None = None
        self.answered = False

    async def receive(self) -> Message:
        if self.refusal is None:
            message = await self._receive()
            self._received += len(message.get("body", b""))
            try:
                self._limit.check(self._received, "has more than")
            except ServeError as error:
                self.refusal = error
            else:
                return message
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.refusal is None or self.answered:
            self.answered = True
            await self._send(message)


class _Answer:
    """One reply, in the service's form and with one identifier.

    Args:
        scope: Of the request.
        receive: Likewise.
        send: Likewise.

    Attributes:
        scope: With the identifier among the headers, which Ray and the replica take from there.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        identifier = identifier_of(scope["headers"]).encode()
        others = [header for header in scope["headers"] if header[0] != b"x-request-id"]
        self.scope: Scope = {**scope, "headers": [*others, (b"x-request-id", identifier)]}
        self._receive, self._send = receive, send
        self._identifier = identifier
        self._begun = False
        self._status = 0  # of an error of Ray's, which is held back until its text is complete
        self._text = b""

    async def send(self, message: Message) -> None:
        """Send a part of the reply, or hold it back if Ray wrote it."""
        if message["type"] == "http.response.start":
            if _is_ray_error(message):
                self._status = message["status"]
                return
            message = self._named(message)
        elif self._status:
            self._text += message.get("body", b"")
            if not message.get("more_body", False):
                await self._rewrite()
            return
        await self._send(message)

    async def finish(self) -> None:
        """Answer in place of a replica that has not begun to."""
        if not self._begun:
            await error_reply(NoReplicaReplyError(DIED), self.scope)(self.scope, self._receive, self.send)

    async def _rewrite(self) -> None:
        """Send the service's reply in place of an error of Ray's."""
        text = self._text.decode("utf-8", "replace") or f"Ray answered {self._status}"
        headers = BusyError.headers if self._status == BusyError.status else {}
        own = reply({"error": f"Ray Serve: {text}"}, self._status, headers)
        self._status = 0
        await own(self.scope, self._receive, self.send)

    def _named(self, message: Message) -> Message:
        self._begun = True
        headers = MutableHeaders(raw=list(message.get("headers", ())))
        headers["x-request-id"] = self._identifier.decode("latin-1")
        return {**message, "headers": headers.raw}


def _is_ray_error(start: Message) -> bool:
    """Whether a reply is an error that Ray wrote: those of the service are JSON."""
    kind = Headers(raw=list(start.get("headers", ()))).get("content-type", "")
    return bool(start["status"] >= FAILURES and kind.startswith("text/plain"))
