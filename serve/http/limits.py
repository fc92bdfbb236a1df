"""How slowly a caller may send a body: an admission place is not to be had for a byte now and then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from yolo_assigner.serve.errors import TooSlowError
from yolo_assigner.serve.system import is_spare

MINIMUM_RATE = 4096  # bytes a second on average, once the longest pause is over
GRAIN = 0.25  # of the longest pause; the timer is not set anew for every piece of a fast body


class DataRate:
    """Told of every piece that came.

    Args:
        pause: Longest time without one, seconds; None: for ever.
        timeout: What ends the wait.
    """

    def __init__(self, pause: float | None, timeout: asyncio.Timeout) -> None:
        self._pause = pause
        self._timeout = timeout
        self._clock = asyncio.get_running_loop().time
        self._begun = self._again = self._clock()
        self._received = 0

    def came(self, size: int) -> None:
        """A piece of so many bytes."""
        self._received += size
        if self._pause is None or (now := self._clock()) < self._again or not size:
            return
        slowest = self._begun + self._received / MINIMUM_RATE
        self._again = min(now + GRAIN * self._pause, slowest)
        self._timeout.reschedule(self._again + self._pause)


@asynccontextmanager
async def minimum_data_rate(pause: float | None) -> AsyncIterator[DataRate]:
    """Bound the time in which a body is read.

    Args:
        pause: Longest time without a piece, seconds; None: for ever.

    Raises:
        TooSlowError: It came too slowly.
    """
    try:
        async with asyncio.timeout(pause) as timeout:
            yield DataRate(pause, timeout)
    except TimeoutError as error:
        raise TooSlowError(
            f"the body came too slowly: nothing for {pause:g} s, or less than {MINIMUM_RATE} bytes a second; send it "
            "in one go, or raise --client-timeout"
        ) from error


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
        patience: Seconds in which ``MINIMUM_RATE`` bytes a second have to be taken; None: for ever.
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
            most = max(0, transport.get_write_buffer_size() - MINIMUM_RATE * self._patience)
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


MAX_BUFFERED_BYTES = 2**26  # bytes of all connections that were read and wait behind requests without replies
MOST_CONNECTIONS = 1000


class ConnectionLimits:
    """Called from the event loop's thread alone.

    Args:
        most: Connections at one time.

    Attributes:
        most: The same.
        buffered_bytes: Bytes that were read and not parsed, because they came behind requests without replies.
    """

    def __init__(self, most: int = MOST_CONNECTIONS) -> None:
        self.most = most
        self.buffered_bytes = 0
        self._waiting: dict[asyncio.Transport, None] = {}  # in the order in which their waits began
        self._working: set[asyncio.Transport] = set()
        self._crowding: set[asyncio.Transport] = set()  # have one of the last descriptors

    def enter(self, transport: asyncio.Transport) -> None:
        """A new connection, in place of the one that has waited longest for a request if there are too many.

        A client has to expect the end of a connection that it does not use, and takes another; a new one that is turned
        away has none. Heads that do not come to an end keep nobody out this way, either.
        """
        crowding = is_spare(transport.get_extra_info("socket").fileno())
        if self._waiting and (crowding or len(self._waiting) + len(self._working) >= self.most):
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.abort()  # what is not taken of replies until now is not waited for
        elif crowding:
            self._crowding.add(transport)
        self.waits(transport)

    def waits(self, transport: asyncio.Transport) -> None:
        """A connection has no request under way; it may have been so before."""
        self._working.discard(transport)
        self._waiting.setdefault(transport)

    def works(self, transport: asyncio.Transport) -> None:
        """A connection has a request under way, or is closed once the last reply is taken."""
        self._waiting.pop(transport, None)
        self._working.add(transport)

    def leave(self, transport: asyncio.Transport) -> None:
        """A connection is gone."""
        self._waiting.pop(transport, None)
        self._working.discard(transport)
        self._crowding.discard(transport)

    def why_full(self, transport: asyncio.Transport) -> str | None:
        """Why a new request on a connection is refused; None when there is room for it."""
        if transport in self._crowding:
            return "there are no file descriptors left for connections; try again in a moment, or raise `ulimit -n`"
        if len(self._working) - (transport in self._working) >= self.most:
            return f"{self.most} connections have requests under way; try again in a moment"
        return None
