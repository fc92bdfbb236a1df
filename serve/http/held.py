"""What one request holds of the bytes that all may have together; a packed one has more than its headers say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.types import Scope

HELD = "yolo_assigner.serve.http.held"  # in the ASGI scope


class Room(Protocol):
    """What is held of; :class:`yolo_assigner.serve.http.admission.Admission`."""

    def enter(self, size: int) -> None:
        """Let a request in, or raise."""

    def resize(self, size: int, wanted: int) -> None:
        """Let it have more or fewer bytes, or raise."""

    def recount(self, size: int, wanted: int) -> None:
        """It has a reply of so many bytes in place of its body."""

    def leave(self, size: int) -> None:
        """It has ended."""


class Held:
    """A place for one request, from its headers to the end of its reply.

    Args:
        room: Where.
        size: Bytes, as far as is known yet.

    Raises:
        BusyError: There is no room.
    """

    def __init__(self, room: Room, size: int) -> None:
        self._room, self._size = room, size
        room.enter(size)

    def become(self, size: int) -> None:
        """Hold so many bytes from now on.

        Raises:
            BusyError: There is no room for them.
        """
        self._room.resize(self._size, size)
        self._size = size

    def become_reply(self, size: int) -> None:
        """Hold the bytes of the reply from now on, in place of the body's."""
        self._room.recount(self._size, size)
        self._size = size

    def leave(self) -> None:
        """Give the place back."""
        self._room.leave(self._size)


def holder(scope: Scope) -> Callable[[int], None]:
    """What the body of a request must tell its size once that is known."""
    held = scope.get(HELD)
    return held.become if isinstance(held, Held) else _nobody


def _nobody(_: int) -> None:
    """Bodies of requests that compute nothing are small and not counted."""
