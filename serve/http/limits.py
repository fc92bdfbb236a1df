"""Limits on connections: their number, how slowly callers may send and receive, and what they may send ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from yolo_assigner.serve.errors import TooSlowError
from yolo_assigner.serve.system import is_spare

MINIMUM_RATE = 4096  # bytes a second on average, after the client timeout
GRAIN = 0.25  # of the client timeout: the timer is not set anew for every part of a fast body
MAX_BUFFERED_BYTES = 2**26  # of all connections together: read, and waiting behind requests without replies
MAX_CONNECTIONS = 1000


class DataRate:
    """Extends a time limit as long as data comes fast enough.

    Args:
        client_timeout: Longest time without data, seconds; None: no limit.
        timeout: The time limit.
    """

    def __init__(self, client_timeout: float | None, timeout: asyncio.Timeout) -> None:
        self._client_timeout = client_timeout
        self._timeout = timeout
        self._clock = asyncio.get_running_loop().time
        self._begun = self._again = self._clock()
        self._received = 0

    def add(self, size: int) -> None:
        """Count bytes that came."""
        self._received += size
        if self._client_timeout is None or (now := self._clock()) < self._again or not size:
            return
        slowest = self._begun + self._received / MINIMUM_RATE
        self._again = min(now + GRAIN * self._client_timeout, slowest)
        self._timeout.reschedule(self._again + self._client_timeout)


@asynccontextmanager
async def minimum_data_rate(client_timeout: float | None) -> AsyncIterator[DataRate]:
    """Bound the time in which a body is read: a request must not keep its place for a byte now and then.

    Args:
        client_timeout: Longest time without data, seconds; None: no limit.

    Raises:
        TooSlowError: The body came too slowly.
    """
    try:
        async with asyncio.timeout(client_timeout) as timeout:
            yield DataRate(client_timeout, timeout)
    except TimeoutError as error:
        raise TooSlowError(
            f"the body came too slowly: nothing for {client_timeout:g} s, or less than {MINIMUM_RATE} bytes a second; "
            "send it in one go, or raise --client-timeout"
        ) from error


class Timer:
    """Calls a function once, at a time that may be changed."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped. A function that it has called must stop it to start it again."""
        return self._handle is not None

    def start(self, when: float, call: Callable[[], None]) -> None:
        """Call a function at a time of the event loop's clock, in place of any earlier one."""
        self.stop()
        self._handle = asyncio.get_running_loop().call_at(when, call)

    def stop(self) -> None:
        """Call nothing."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class WriteWatch:
    """Ends connections whose callers do not read what is sent to them.

    Args:
        client_timeout: Seconds in which ``MINIMUM_RATE`` bytes a second have to be read; None: no limit.
        cut_off: Called for a caller that is too slow.
    """

    def __init__(self, client_timeout: float | None, cut_off: Callable[[], None]) -> None:
        self._client_timeout = client_timeout
        self._cut_off = cut_off
        self._timer = Timer()

    @property
    def running(self) -> bool:
        """Whether a connection is watched."""
        return self._timer.running

    def begin(self, transport: asyncio.Transport) -> None:
        """Watch a connection while data waits to be sent on it."""
        if self._client_timeout is not None:
            most = max(0, transport.get_write_buffer_size() - MINIMUM_RATE * self._client_timeout)
            self._timer.start(self._after(self._client_timeout), lambda: self._check(transport, most))

    def begin_closing(self, transport: asyncio.Transport) -> None:
        """Abort a connection on which nothing more will be sent, unless the rest is read in time."""
        if self._client_timeout is not None and not self._timer.running:
            self._timer.start(self._after(self._client_timeout), transport.abort)

    def end(self) -> None:
        """Stop watching."""
        self._timer.stop()

    def _check(self, transport: asyncio.Transport, most: float) -> None:
        left = transport.get_write_buffer_size()
        if left > most:
            self._cut_off()
        elif left:
            self.begin(transport)
        else:
            self.end()

    @staticmethod
    def _after(seconds: float) -> float:
        return asyncio.get_running_loop().time() + seconds


class ConnectionLimits:
    """Counts connections, and makes room for new ones. Called from the event loop's thread alone.

    Args:
        most: Connections at one time.

    Attributes:
        most: The same.
        buffered_bytes: Bytes that were read and not parsed, because they came behind requests without replies.
    """

    def __init__(self, most: int = MAX_CONNECTIONS) -> None:
        self.most = most
        self.buffered_bytes = 0
        self._idle: dict[asyncio.Transport, None] = {}  # in the order in which they became idle
        self._busy: set[asyncio.Transport] = set()
        self._on_spare: set[asyncio.Transport] = set()  # have one of the last file descriptors

    def enter(self, transport: asyncio.Transport) -> None:
        """Add a new connection; if there are too many, in place of the one that has been idle longest.

        A client has to expect that a connection which it does not use ends, and opens another; turned away with a new
        one, it has none. Heads that never end keep nobody out this way, either.
        """
        spare = is_spare(transport.get_extra_info("socket").fileno())
        if self._idle and (spare or len(self._idle) + len(self._busy) >= self.most):
            longest = next(iter(self._idle))
            del self._idle[longest]
            longest.abort()  # without waiting for unread replies
        elif spare:
            self._on_spare.add(transport)
        self.set_idle(transport)

    def set_idle(self, transport: asyncio.Transport) -> None:
        """Note that a connection has no request under way; it may have been so before."""
        self._busy.discard(transport)
        self._idle.setdefault(transport)

    def set_busy(self, transport: asyncio.Transport) -> None:
        """Note that a connection has a request under way, or is closed once the last reply is read."""
        self._idle.pop(transport, None)
        self._busy.add(transport)

    def leave(self, transport: asyncio.Transport) -> None:
        """Remove a connection."""
        self._idle.pop(transport, None)
        self._busy.discard(transport)
        self._on_spare.discard(transport)

    def why_full(self, transport: asyncio.Transport) -> str | None:
        """Why a new request on a connection is refused; None when it is not."""
        if transport in self._on_spare:
            return "there are no file descriptors left for connections; try again in a moment, or raise `ulimit -n`"
        if len(self._busy) - (transport in self._busy) >= self.most:
            return f"{self.most} connections have requests under way; try again in a moment"
        return None
