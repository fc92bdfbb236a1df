"""A connection on which anything can be written, and replies as they come. Use from one thread."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple

Piece = bytes | float  # what is written, or seconds to wait


class Reply(NamedTuple):
    """What came back.

    Attributes:
        status: Of HTTP.
        headers: By name in small letters.
        body: All of it.
    """

    status: int
    headers: dict[str, str]
    body: bytes


class NoReplyError(Exception):
    """The server closed the connection, or said nothing for long."""


class Wire:
    """A connection to the server.

    Args:
        port: On loopback.
        timeout: Seconds to wait for a reply.
        room: Bytes that the system keeps of what was not read yet; None: as many as it likes.
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
        """Hang up."""
        self._reader.close()
        self.socket.close()

    def write(self, pieces: Iterable[Piece]) -> None:
        """Send, as far as the server takes it: it may have answered and closed long before the end."""
        try:
            for piece in pieces:
                if isinstance(piece, bytes):
                    self.socket.sendall(piece)
                else:
                    time.sleep(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def reply(self) -> Reply:
        """The next reply that is no ``100 Continue``.

        Raises:
            NoReplyError: There is none.
        """
        try:
            status = 100
            while status == 100:
                status, headers = self._head()
            return Reply(status, headers, self._exactly(int(headers["content-length"])))
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise NoReplyError(f"no reply ({type(error).__name__}: {error})") from error

    def ended(self) -> bool:
        """Whether nothing more comes, after waiting for it."""
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
