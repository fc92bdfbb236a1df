"""How slowly a caller may send a body: an admission place is not to be had for a byte now and then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from yolo_assigner.serve.errors import TooSlowError

SLOWEST = 4096  # bytes a second on average, once the longest pause is over
GRAIN = 0.25  # of the longest pause; the timer is not set anew for every piece of a fast body


class Pace:
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
        slowest = self._begun + self._received / SLOWEST
        self._again = min(now + GRAIN * self._pause, slowest)
        self._timeout.reschedule(self._again + self._pause)


@asynccontextmanager
async def keeping_up(pause: float | None) -> AsyncIterator[Pace]:
    """Bound the time in which a body is read.

    Args:
        pause: Longest time without a piece, seconds; None: for ever.

    Raises:
        TooSlowError: It came too slowly.
    """
    try:
        async with asyncio.timeout(pause) as timeout:
            yield Pace(pause, timeout)
    except TimeoutError as error:
        raise TooSlowError(
            f"the body came too slowly: nothing for {pause:g} s, or less than {SLOWEST} bytes a second; send it "
            "in one go, or raise --client-timeout"
        ) from error
