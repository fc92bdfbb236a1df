"""Timers of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from yolo_assigner.serve.http.pace import SLOWEST


class Timer:
    """Calls once, later, unless it is stopped or started anew."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        """It was started and not stopped; what it calls stops it when it is to run again."""
        return self._handle is not None

    def start(self, when: float, call: Callable[[], None]) -> None:
        """Call at a time of the event loop's clock."""
        self.stop()
        self._handle = asyncio.get_running_loop().call_at(when, call)

    def stop(self) -> None:
        """Forget it."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class WriteWatch:
    """Cuts callers off that do not take what is sent to them.

    Args:
        patience: Seconds in which ``SLOWEST`` bytes a second have to be taken; None: for ever.
        cut_off: Told then.
    """

    def __init__(self, patience: float | None, cut_off: Callable[[], None]) -> None:
        self._patience = patience
        self._cut_off = cut_off
        self._timer = Timer()

    @property
    def running(self) -> bool:
        """Somebody is watched."""
        return self._timer.running

    def begin(self, transport: asyncio.Transport) -> None:
        """Something waits to be taken."""
        if self._patience is not None:
            most = max(0, transport.get_write_buffer_size() - SLOWEST * self._patience)
            self._timer.start(self._then(self._patience), lambda: self._look(transport, most))

    def begin_closing(self, transport: asyncio.Transport) -> None:
        """Nothing more will be sent; the rest has to be taken in time."""
        if self._patience is not None and not self._timer.running:
            self._timer.start(self._then(self._patience), transport.abort)

    def end(self) -> None:
        """Nearly all was taken, or the connection is gone."""
        self._timer.stop()

    def _look(self, transport: asyncio.Transport, most: float) -> None:
        left = transport.get_write_buffer_size()
        if left > most:
            self._cut_off()
        elif left:
            self.begin(transport)
        else:
            self.end()

    @staticmethod
    def _then(seconds: float) -> float:
        return asyncio.get_running_loop().time() + seconds
