"""A socket between two processes of one machine that carries messages, and descriptors of memory."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

PACKET_BYTES = 2**16  # well below what a socket takes at once
MOST_PACKETS = 16  # that are read before others have their turn
WHOLE, BEGIN = b"\0", b"\1"
logger = logging.getLogger("serve")


class Packet(NamedTuple):
    """What is sent at once; with a descriptor it carries one message alone."""

    data: bytes
    descriptor: int | None


class Channel:
    """One end. Messages of one turn of the event loop travel together.

    They are pickled: the other end is this program, started by it, and nobody else has the socket.

    Args:
        end: A socket of a pair of ``SOCK_SEQPACKET``.
        on_message: Given every message, and the descriptor that came with it.
        on_closed: Told once that the other end is gone.
    """

    def __init__(
        self, end: socket.socket, on_message: Callable[[Any, int | None], None], on_closed: Callable[[], None]
    ) -> None:
        self._socket = end
        self._on_message = on_message
        self._on_closed = on_closed
        self._outbox: list[bytes] = []
        self._packets: deque[Packet] = deque()
        self._parts: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._open, self._waits = True, False
        end.setblocking(False)
        self._loop.add_reader(end, self._read)

    def send(self, message: Any, descriptor: int | None = None) -> None:
        """Send a message; from the event loop's thread. Nothing happens when the channel is closed.

        Args:
            message: Anything that can be pickled.
            descriptor: Of an open file, which the other end gets its own of. It may be closed when this returns.
        """
        if not self._open:
            return
        text = pickle.dumps(message)
        if descriptor is not None:
            self._pack()
            self._packets.append(Packet(WHOLE + text, os.dup(descriptor)))
        else:
            self._outbox.append(text)
            if len(self._outbox) > 1:
                return
        self._loop.call_soon(self._flush)

    def send_soon(self, message: Any) -> None:
        """Send a message; from any thread."""
        with suppress(RuntimeError):  # the loop may be closed already, and the channel with it
            self._loop.call_soon_threadsafe(self.send, message)

    async def flushed(self) -> None:
        """Wait until all that was sent has left."""
        while self._open and (self._outbox or self._packets):
            await asyncio.sleep(0.001)

    def close(self) -> None:
        """Close this end. The other one is told."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._drop()

    def _drop(self) -> None:
        """Forget what has not been sent."""
        for packet in self._packets:
            _close(packet.descriptor)
        self._packets.clear()

    def _flush(self) -> None:
        if not self._open:
            return
        self._pack()
        try:
            while self._packets:
                data, descriptor = self._packets[0]
                if descriptor is None:
                    self._socket.send(data)
                else:
                    socket.send_fds(self._socket, [data], [descriptor])
                self._packets.popleft()
                _close(descriptor)
        except BlockingIOError:
            if not self._waits:
                self._waits = True
                self._loop.add_writer(self._socket, self._flush)
        except ConnectionError:
            self._drop()  # the end is noticed once all that the other end said before has been read
        except OSError:
            self._end()
        else:
            if self._waits:
                self._waits = False
                self._loop.remove_writer(self._socket)

    def _pack(self) -> None:
        """Make packets of what waits: small messages together, large ones in parts."""
        together: list[bytes] = []
        size = 0
        for text in self._outbox:
            if together and size + len(text) > PACKET_BYTES:
                self._packets.extend(_packets(b"".join(together)))
                together.clear()
                size = 0
            together.append(text)
            size += len(text)
        if together:
            self._packets.extend(_packets(b"".join(together)))
        self._outbox.clear()

    def _read(self) -> None:
        for _ in range(MOST_PACKETS):
            if not self._open:
                return
            try:
                data, descriptors, *_ = socket.recv_fds(self._socket, PACKET_BYTES + 1, 1)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # the other end is gone; what it said before still comes
            except OSError:
                self._end()
                return
            if not data:
                self._end()
                return
            self._parts.append(data[1:])
            if data[:1] == WHOLE:
                text = b"".join(self._parts)
                self._parts.clear()
                self._deliver(text, descriptors[0] if descriptors else None)

    def _deliver(self, text: bytes, descriptor: int | None) -> None:
        stream = io.BytesIO(text)
        try:
            while stream.tell() < len(text):
                self._on_message(pickle.load(stream), descriptor)  # noqa: S301 - see above
        except Exception:
            # Whoever waits for what is lost would wait for ever; both sides know what to do when a channel ends.
            logger.exception("a message between the server's processes cannot be taken; their channel is closed")
            self._end()

    def _end(self) -> None:
        self.close()
        self._on_closed()


def _packets(text: bytes) -> Iterator[Packet]:
    starts = range(0, len(text), PACKET_BYTES)
    for start in starts:
        last = start == starts[-1]
        yield Packet((WHOLE if last else BEGIN) + text[start : start + PACKET_BYTES], None)


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
