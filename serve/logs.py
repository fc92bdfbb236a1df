"""Logs as text or JSON, one line an event with the request that it belongs to, written without ever blocking."""

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

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

KEPT_BYTES = 2**20  # that wait to be written
DRAIN_SECONDS = 1.0  # at exit
TIME = "%Y-%m-%dT%H:%M:%S%z"
FIELDS = "%(levelname)s %(name)s %(request_id)s %(message)s"
request_id: ContextVar[str] = ContextVar("request_id", default="-")
logger = logging.getLogger("serve")


def configure_logs(level: str, form: str) -> None:
    """Log to standard error.

    Args:
        level: Lowest level that is logged, in small letters.
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


class NonBlockingStream(io.BufferedIOBase):
    """A stream that never blocks: a thread writes its lines, and those that come while too many wait are dropped.

    It queues lines and not log records, so that it also takes tracebacks, warnings and printed text.

    Args:
        descriptor: The file, pipe or socket to write to.

    Attributes:
        name: Shown in error messages.
        dropped: Number of lines that were dropped.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.name = f"descriptor {descriptor}"
        self.dropped = 0
        self._unreported = 0
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        # The lock is reentrant because a finalizer may write a warning at any time, also in the thread that has it.
        self._changed = threading.Condition(threading.RLock())
        threading.Thread(target=self._write_lines, name=f"stream-{descriptor}", daemon=True).start()

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """The descriptor that it writes to."""
        return self._descriptor

    def write(self, data: ReadableBuffer, /) -> int:
        """Queue a line, or drop it."""
        line = bytes(data)
        with self._changed:
            # After a drop, half of the queue must be free again, so that drops are reported together.
            most = KEPT_BYTES // 2 if self._unreported else KEPT_BYTES
            if self._waiting_bytes + len(line) > most:
                self._drop()
            else:
                self._waiting.append(line)
                self._waiting_bytes += len(line)
                self._changed.notify_all()
        return len(line)

    def drain(self, seconds: float) -> None:
        """Wait until all lines are written, or for a time."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, seconds)

    def _drop(self) -> None:
        self.dropped += 1
        self._unreported += 1

    def _write_lines(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                line = self._waiting[0]
            written, unreported = _write(self._descriptor, line), 0
            with self._changed:
                self._waiting.popleft()
                self._waiting_bytes -= len(line)
                self._changed.notify_all()
                if not written:
                    self._drop()
                elif self._waiting_bytes <= KEPT_BYTES // 2:
                    unreported, self._unreported = self._unreported, 0
            if unreported:
                logger.warning("%d log records were dropped: standard error was not read, or was full", unreported)


def make_streams_nonblocking() -> Callable[[], int]:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams to which writing never blocks and never fails.

    Returns:
        A function that returns the number of dropped lines.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # It was closed. Opening takes the lowest free descriptor, which is that of the stream. Otherwise the next
            # socket would get it, and with it the messages of native code.
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
    """Write all data; False when that fails."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # the parent process may have made it non-blocking
            select.select((), (descriptor,), ())
        except OSError:
            return False
    return True
