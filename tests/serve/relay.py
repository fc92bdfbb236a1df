"""A proxy before a real server that cuts replies, answers itself, or holds requests back."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.serve.conftest import Live

PIECE = 2**16


@dataclass
class Relay:
    """What a relay does, and has done.

    Attributes:
        target: The server.
        listener: Where it listens.
        script: For each connection in turn: the number of bytes of the reply after which it is cut, or an answer that
            is sent in the server's place. Further connections are passed on.
        hidden: What is crossed out in the replies of the server.
        connections: How many there were.
        open: Requests are passed on while it is set.
    """

    target: Live
    listener: socket.socket
    script: list[int | bytes]
    hidden: bytes = b""
    connections: int = 0
    open: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """For clients."""
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self) -> None:
        """Accept connections until the listener is closed."""
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                entry = self.script[self.connections] if self.connections < len(self.script) else None
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection, entry), daemon=True).start()

    def _serve(self, connection: socket.socket, entry: int | bytes | None) -> None:
        with connection, suppress(OSError):
            if isinstance(entry, bytes):
                _read_request(connection)
                connection.sendall(entry)
                return
            self.open.wait()
            with socket.create_connection((self.target.host, self.target.port)) as server:
                threading.Thread(target=_pump, args=(connection, server), daemon=True).start()
                _pump(server, connection, entry, self.hidden)


@contextmanager
def relay(
    target: Live, script: Sequence[int | bytes] = (), *, hidden: bytes = b"", held: bool = False, port: int = 0
) -> Iterator[Relay]:
    """Run a relay.

    Args:
        target: The server behind it.
        script: What to do with the first connections.
        hidden: What to cross out in replies; a header's name, which is in the first piece.
        held: Whether requests wait until ``open`` is set.
        port: Port to listen on; 0 takes a free one.
    """
    with socket.create_server(("127.0.0.1", port)) as listener:
        made = Relay(target, listener, list(script), hidden)
        if not held:
            made.open.set()
        thread = threading.Thread(target=made.run)
        thread.start()
        try:
            yield made
        finally:
            made.open.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def answer(status: int, *headers: str, body: str = "") -> bytes:
    """A reply as bytes."""
    lines = [f"HTTP/1.1 {status} Any", *headers, f"Content-Length: {len(body)}", "Connection: close", "", body]
    return "\r\n".join(lines).encode()


def _read_request(connection: socket.socket) -> None:
    with connection.makefile("rb") as stream:
        length = 0
        while line := stream.readline().strip().lower():
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        stream.read(length)


def _pump(source: socket.socket, sink: socket.socket, most: int | None = None, hidden: bytes = b"") -> None:
    """Copy until the source ends, or so many bytes were copied; then end the connection."""
    passed = 0
    with suppress(OSError):
        while most is None or passed < most:
            piece = source.recv(PIECE if most is None else most - passed)
            if not piece:
                break
            sink.sendall(piece.replace(hidden, b"-" * len(hidden)) if hidden else piece)
            passed += len(piece)
    for end in (sink, source):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
