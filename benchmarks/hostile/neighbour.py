"""A caller with well-formed requests beside the hostile ones; its answers must stay the same to the bit."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from tests.serve.hostile.judge import Judge
from tests.serve.hostile.requests import good_requests
from tests.serve.hostile.wire import NoReplyError, Wire

PAUSE = 0.01  # seconds between requests, in which others get their turn


class Neighbour(threading.Thread):
    """Sends requests while its ``with`` block lasts.

    Args:
        port: Port of the server.
        judge: Checks the first answers; the others are compared with these.

    Attributes:
        answers: Number of answers.
        slowest: Seconds of the slowest answer.
        faults: Descriptions of what was wrong.
    """

    def __init__(self, port: int, judge: Judge) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._judge = judge
        self._over = threading.Event()
        self.answers = 0
        self.slowest = 0.0
        self.faults: list[str] = []

    def __enter__(self) -> Neighbour:
        self.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Send requests on one connection until the block ends."""
        requests = good_requests()
        known: list[bytes] = []
        with Wire(self._port) as wire:
            while not self._over.is_set():
                request = requests[self.answers % len(requests)]
                began = time.monotonic()
                wire.write([request.head() + request.body])
                try:
                    reply = wire.reply()
                except NoReplyError as error:
                    self.faults.append(f"neighbour: {error}")
                    return
                self.slowest = max(self.slowest, time.monotonic() - began)
                if len(known) < len(requests):
                    known.append(reply.body)
                    fault = self._judge.fault(request, reply) or (
                        None if reply.status == 200 else f"status {reply.status}"
                    )
                else:
                    same = reply.body == known[self.answers % len(requests)]
                    fault = None if same else f"another answer than before: {reply.status} {reply.body[:200]!r}"
                if fault is not None:
                    self.faults.append(f"neighbour: {fault}")
                self.answers += 1
                time.sleep(PAUSE)
