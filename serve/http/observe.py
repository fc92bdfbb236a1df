"""Every request gets an identifier, a line in the log and its place in the metrics."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Iterable
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yolo_assigner.serve.http.metrics import Metrics
from yolo_assigner.serve.logs import request_id
from yolo_assigner.serve.settings import UNIX

GOOD_ID = re.compile(r"[\x21-\x7e]{1,128}")
# Names of models are not among the labels: a caller could make up any number of them.
ROUTES = (
    ("infer", re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")),
    ("loss", re.compile(r"/v1/loss")),
    ("assign", re.compile(r"/v1/assign")),
    ("reduce", re.compile(r"/v1/reduce")),
    ("health", re.compile(r"/v2/health/\w+|/v2/models/[^/]+(/versions/[^/]+)?/ready")),
    ("shared_memory", re.compile(r"/v2/(system|cuda)sharedmemory.*")),
)
SHOWN = "/:@!$&'()*+,;=~"  # of a path as it is; line feeds could look like other entries of the log
FAILED, REFUSED = 500, 400
NO_KEY = "-"  # none was needed, or the request was refused for its key
FORM = "%(method)s %(path)s %(status)s in %(milliseconds)s ms from %(peer)s"
logger = logging.getLogger("serve.access")


class Observer:
    """Watches requests come and go; changes nothing but for the header ``X-Request-Id``.

    Args:
        app: What is watched.
        metrics: Where it is counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Watch one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = _Seen(scope, receive, send)
        token = request_id.set(seen.id)
        try:
            await self._app(scope, seen.receive, seen.send)
        finally:
            seconds = time.perf_counter() - seen.started
            route = next((name for name, pattern in ROUTES if pattern.fullmatch(scope["path"])), "other")
            reason = scope.get("state", {}).get("reason")
            self._metrics.answered(route, seen.status, seen.received, seen.sent, seconds, reason)
            _log(scope, seen, seconds, route)
            request_id.reset(token)


class _Seen:
    """One request and what passed. A request that ends without a reply counts as failed."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if GOOD_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.id  # the connection may refuse the rest of its body
        self.started = time.perf_counter()
        self.status, self.received, self.sent = FAILED, 0, 0
        self._receive, self._send, self._method = receive, send, scope["method"]

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", self.id.encode())]}
        if self._method != "HEAD":  # whose replies are sent without their bodies
            self.sent += len(message.get("body", b""))
        await self._send(message)


def _log(scope: Scope, seen: _Seen, seconds: float, route: str) -> None:
    # The other codes above 500 say that the server is busy or does not do such things, as it was told.
    level = logging.ERROR if seen.status == FAILED else logging.INFO if seen.status >= REFUSED else logging.DEBUG
    if route == "health":
        level = logging.DEBUG  # asked every second or so, and no is an ordinary answer
    if logger.isEnabledFor(level):
        key = scope.get("state", {}).get("key_name", NO_KEY)
        fields = {
            "method": scope["method"],
            "path": quote(scope["path"], safe=SHOWN),
            "peer": shown_peer(scope.get("client")),
            "key": key,
            "status": seen.status,
            "received": seen.received,
            "sent": seen.sent,
            "milliseconds": round(1000 * seconds, 2),
        }
        form = FORM if key == NO_KEY else f"{FORM} with key %(key)s"
        logger.log(level, form, fields, extra=fields)


def shown_peer(client: tuple[str, int] | None) -> str:
    """Address and port of the caller; ``unix`` for one of the Unix socket, ``-`` where there is none."""
    host, port = client or ("", 0)
    if host in ("", UNIX):
        return host or "-"
    shown = quote(host, safe=":")  # a proxy may pass on anything
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"


LINES_A_SECOND = 10
Client = tuple[str, int] | None


class Refusals:
    """Those of all connections of one server. Called from the event loop's thread alone.

    Args:
        metrics: Where they are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._logged = self._left_out = 0  # of the current second

    def count(self, status: int) -> None:
        """Count a request that the application does not get."""
        self._metrics.refused("connection", status)

    def log(self, client: Client, identifier: str, status: int, reason: str) -> None:
        """Log a refusal.

        Args:
            client: Address and port of the caller.
            identifier: Of the request.
            status: Of the answer, whether or not it could still be sent.
            reason: Text of the answer.
        """
        fields = {"peer": shown_peer(client), "status": status, "reason": reason}
        self._log(identifier, "%(status)s at the connection from %(peer)s: %(reason)s", fields)

    def log_cut_off(self, client: Client) -> None:
        """Log that a connection was closed because its caller does not read."""
        form = "the connection from %(peer)s was closed: its caller does not read the reply"
        self._log("-", form, {"peer": shown_peer(client)})

    def _log(self, identifier: str, form: str, fields: dict[str, object]) -> None:
        if not self._logged:
            asyncio.get_running_loop().call_later(1.0, self._next_second)
        if self._logged == LINES_A_SECOND:
            self._left_out += 1
            return
        self._logged += 1
        token = request_id.set(identifier)
        logger.info(form, fields, extra=fields)
        request_id.reset(token)

    def _next_second(self) -> None:
        left_out, self._logged, self._left_out = self._left_out, 0, 0
        if left_out:
            logger.info("%d more connections were refused within a second; see the metrics", left_out)


def identifier_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's own ``X-Request-Id`` where these headers have a usable one, else a new one."""
    given = next((value.decode("latin-1") for name, value in headers if name == b"x-request-id"), "")
    return given if GOOD_ID.fullmatch(given) else uuid.uuid4().hex
