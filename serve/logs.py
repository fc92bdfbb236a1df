"""Logs: one line an event, as text for people or as JSON for collectors, each with the request it belongs to."""

from __future__ import annotations

import atexit
import io
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from pythonjsonlogger.json import JsonFormatter

request_id: ContextVar[str] = ContextVar("request_id", default="-")
TIME = "%Y-%m-%dT%H:%M:%S%z"
FIELDS = "%(levelname)s %(name)s %(request_id)s %(message)s"


def configure_logs(level: str, form: str) -> None:
    """Send everything that is logged to standard error.

    Args:
        level: Least level, in small letters.
        form: ``text`` or ``json``.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_add_request_id)
    if form == "json":
        names = {"levelname": "level", "name": "logger"}
        handler.setFormatter(JsonFormatter(FIELDS, rename_fields=names, timestamp=True))
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s", TIME)
        )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True


if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

KEPT_BYTES = 2**20  # of what waits for a reader
DRAIN_SECONDS = 1.0  # at exit
logger = logging.getLogger("serve")


class NonBlockingStream(io.BufferedIOBase):
    """Takes what is written at once, for a thread to pass on; drops what comes while too much waits.

    A queue of lines and not of log records, so that it also holds tracebacks, warnings and what is printed.

    Args:
        descriptor: Of the file, pipe or socket that gets it.

    Attributes:
        name: For people.
        dropped: How many lines were dropped since the start.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.name = f"descriptor {descriptor}"
        self.dropped = 0
        self._unreported = 0
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        # Its lock can be taken again by the thread that has it: a finalizer may write a warning at any time.
        self._changed = threading.Condition(threading.RLock())
        threading.Thread(target=self._pass_on, name=f"stream-{descriptor}", daemon=True).start()

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """Descriptor of what is behind it."""
        return self._descriptor

    def write(self, data: ReadableBuffer, /) -> int:
        """Take a line, or drop it."""
        line = bytes(data)
        with self._changed:
            # Once some were dropped, half must be free: what was dropped is reported once a stretch, not once a line.
            most = KEPT_BYTES // 2 if self._unreported else KEPT_BYTES
            if self._waiting_bytes + len(line) > most:
                self._drop()
            else:
                self._waiting.append(line)
                self._waiting_bytes += len(line)
                self._changed.notify_all()
        return len(line)

    def drain(self, seconds: float) -> None:
        """Wait until all is passed on, or for a time."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, seconds)

    def _drop(self) -> None:
        self.dropped += 1
        self._unreported += 1

    def _pass_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                line = self._waiting[0]
            passed, unreported = _write(self._descriptor, line), 0
            with self._changed:
                self._waiting.popleft()
                self._waiting_bytes -= len(line)
                self._changed.notify_all()
                if not passed:
                    self._drop()
                elif self._waiting_bytes <= KEPT_BYTES // 2:
                    unreported, self._unreported = self._unreported, 0
            if unreported:
                logger.warning("%d log records were dropped: standard error was not read, or was full", unreported)


def make_streams_nonblocking() -> Callable[[], int]:
    """Replace ``sys.stdout`` and ``sys.stderr``: what writes to them never waits and never fails.

    Returns:
        Counts the lines that were dropped.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # It was closed. This takes the lowest free descriptor, that of the stream, which the next socket would
            # get otherwise: with the messages of native code.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r+", closefd=False))
    streams = [NonBlockingStream(stream.fileno()) for stream in (sys.stdout, sys.stderr)]
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(stream, "utf-8", "backslashreplace", line_buffering=True) for stream in streams
    )
    atexit.register(_drain, streams)
    return lambda: sum(stream.dropped for stream in streams)


def _drain(streams: Sequence[NonBlockingStream]) -> None:
    deadline = time.monotonic() + DRAIN_SECONDS
    for stream in streams:
        stream.drain(max(deadline - time.monotonic(), 0.0))


def _write(descriptor: int, data: bytes) -> bool:
    """Write all; False when that cannot be done."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # whoever started this process has made it so
            select.select((), (descriptor,), ())
        except OSError:
            return False
    return True
