"""Refusals at the connection, before a request gets to the application: counted, and logged at a limited rate."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterable

from yolo_assigner.serve.http.logs import request_id
from yolo_assigner.serve.http.metrics import Metrics
from yolo_assigner.serve.http.observe import GOOD_ID, shown_peer

LINES_A_SECOND = 10
Client = tuple[str, int] | None
logger = logging.getLogger("serve.access")


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
