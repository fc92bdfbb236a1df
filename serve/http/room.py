"""What the connections of one server share: how many there may be, and how much may wait in front of the parser."""

from __future__ import annotations

import asyncio

from yolo_assigner.serve.engine.system import is_spare

MOST_HELD = 2**26  # bytes of all connections that were read and wait behind requests without replies
MOST_CONNECTIONS = 1000


class Room:
    """Called from the event loop's thread alone.

    Args:
        most: Connections at one time.

    Attributes:
        most: The same.
        held: Bytes that were read and not parsed, because they came behind requests without replies.
    """

    def __init__(self, most: int = MOST_CONNECTIONS) -> None:
        self.most = most
        self.held = 0
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
