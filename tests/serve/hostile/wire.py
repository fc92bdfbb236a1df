"""A connection on which any bytes can be sent, and which reads HTTP replies. Use from one thread."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple

Piece = bytes | memoryview | float  # bytes to send, or seconds to wait


class Reply(NamedTuple):
    """An HTTP reply.

    Attributes:
        status: Status code.
        headers: Values by lower-case name.
        body: The whole body.
    """

    status: int
    headers: dict[str, str]
    body: bytes


class NoReplyError(Exception):
    """The server closed the connection or did not reply in time."""


class Wire:
    """A connection to a server on this machine.

    Args:
        port: Port on 127.0.0.1.
        timeout: Seconds to wait for a reply.
        room: Size of the receive buffer in bytes; None leaves it to the system.
    """

    def __init__(self, port: int, timeout: float = 30.0, room: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        if room is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()
        self.socket.close()

    def write(self, pieces: Iterable[Piece]) -> None:
        """Send until the server stops reading: it may reply and close long before the end."""
        try:
            for piece in pieces:
                if isinstance(piece, float):
                    time.sleep(piece)
                else:
                    self.socket.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def half_close(self) -> None:
        """Close the sending direction."""
        self.socket.shutdown(socket.SHUT_WR)

    def reply(self) -> Reply:
        """Read the next reply; ``100 Continue`` is skipped.

        Raises:
            NoReplyError: No whole reply came.
        """
        try:
            status = 100
            while status == 100:
                status, headers = self._head()
            return Reply(status, headers, self._exactly(int(headers["content-length"])))
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise NoReplyError(f"no reply ({type(error).__name__}: {error})") from error

    def ended(self) -> bool:
        """Wait for the server to close the connection; False when it sends something instead."""
        try:
            return not self._reader.read(1)
        except OSError as error:
            return isinstance(error, ConnectionResetError)

    def _head(self) -> tuple[int, dict[str, str]]:
        status = int(self._reader.readline().split()[1])
        headers = {}
        while line := self._reader.readline().strip().decode("latin-1"):
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        return status, headers

    def _exactly(self, length: int) -> bytes:
        body = self._reader.read(length)
        if len(body) != length:
            raise ValueError(f"{len(body)} of {length} bytes came")
        return body
