"""The access log and the metrics of requests, and the identifier of each request."""

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
from yolo_assigner.serve.http.routes import route_of
from yolo_assigner.serve.logs import request_id
from yolo_assigner.serve.settings import UNIX

GOOD_ID = re.compile(r"[\x21-\x7e]{1,128}")
SHOWN = "/:@!$&'()*+,;=~"  # not escaped in logged paths; a line feed could forge an entry of the log
FAILED, REFUSED = 500, 400
NO_KEY = "-"  # in the log, where none was needed or the request was refused for its key
FORM = "%(method)s %(path)s %(status)s in %(milliseconds)s ms from %(peer)s"
LINES_A_SECOND = 10  # of refusals by connections
Client = tuple[str, int] | None
logger = logging.getLogger("serve.access")


class Observer:
    """Logs and counts requests, and adds the header ``X-Request-Id`` to their replies.

    Args:
        app: The application behind it.
        metrics: Counts the requests.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; log and count it at its end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        token = request_id.set(exchange.id)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            seconds = time.perf_counter() - exchange.started
            route = route_of(scope["path"])
            metric = route.metric if route else "other"
            reason = scope.get("state", {}).get("reason")
            self._metrics.answered(metric, exchange.status, exchange.received, exchange.sent, seconds, reason)
            _log(scope, exchange, seconds, metric)
            request_id.reset(token)


class _Exchange:
    """One request and its reply. A request that ends without a reply counts as failed."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if GOOD_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.id  # for a refusal of its body by the connection
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
        if self._method != "HEAD":  # the HTTP server drops the body of its reply
            self.sent += len(message.get("body", b""))
        await self._send(message)


def _log(scope: Scope, exchange: _Exchange, seconds: float, metric: str) -> None:
    # The statuses above 500 are ordinary answers of a busy server, or of one that lacks a feature.
    status = exchange.status
    level = logging.ERROR if status == FAILED else logging.INFO if status >= REFUSED else logging.DEBUG
    if metric == "health":
        level = logging.DEBUG  # asked every second or so, and not being ready is an ordinary answer
    if logger.isEnabledFor(level):
        key = scope.get("state", {}).get("key_name", NO_KEY)
        fields = {
            "method": scope["method"],
            "path": quote(scope["path"], safe=SHOWN),
            "peer": shown_peer(scope.get("client")),
            "key": key,
            "status": status,
            "received": exchange.received,
            "sent": exchange.sent,
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


class Refusals:
    """Counts and logs requests that connections refuse. Called from the event loop's thread alone.

    Args:
        metrics: Counts them.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._logged = self._left_out = 0  # in this second

    def count(self, status: int) -> None:
        """Count a request that does not get to the application."""
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
    """The valid ``X-Request-Id`` among headers, or a new identifier."""
    given = next((value.decode("latin-1") for name, value in headers if name == b"x-request-id"), "")
    return given if GOOD_ID.fullmatch(given) else uuid.uuid4().hex
