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
MAX_PACKETS = 16  # that are read before the event loop's other tasks have their turn
LAST, CONTINUED = b"\0", b"\1"  # first byte of a packet: its last message ends with it, or goes on in the next one
logger = logging.getLogger("serve")


class Packet(NamedTuple):
    """Bytes that are sent at once. A packet with a descriptor carries one whole message."""

    data: bytes
    descriptor: int | None


class Channel:
    """One end of the socket. Messages of one turn of the event loop travel together.

    Messages are pickled: the other end is this program, started by it, and no other process has the socket.

    Args:
        end: A socket of a pair of ``SOCK_SEQPACKET``.
        on_message: Called with every message, and the descriptor that came with it.
        on_closed: Called once when the other end is gone.
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
        self._open, self._waits_to_write = True, False
        end.setblocking(False)
        self._loop.add_reader(end, self._read)

    def send(self, message: Any, descriptor: int | None = None) -> None:
        """Send a message, from the event loop's thread. On a closed channel this does nothing.

        Args:
            message: Anything that can be pickled.
            descriptor: Descriptor of an open file, of which the other end gets a duplicate. The caller may close it
                after this call.
        """
        if not self._open:
            return
        text = pickle.dumps(message)
        if descriptor is not None:
            self._pack()
            self._packets.append(Packet(LAST + text, os.dup(descriptor)))
        else:
            self._outbox.append(text)
            if len(self._outbox) > 1:
                return
        self._loop.call_soon(self.flush)

    def send_soon(self, message: Any) -> None:
        """Send a message, from any thread."""
        with suppress(RuntimeError):  # the loop may be closed already, and the channel with it
            self._loop.call_soon_threadsafe(self.send, message)

    def flush(self) -> None:
        """Give queued messages to the system, as many as it takes now; the rest follows by itself."""
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
            if not self._waits_to_write:
                self._waits_to_write = True
                self._loop.add_writer(self._socket, self.flush)
        except ConnectionError:
            self._drop_packets()  # reading ends the channel, once all that the other end sent before has been read
        except OSError:
            self._end()
        else:
            if self._waits_to_write:
                self._waits_to_write = False
                self._loop.remove_writer(self._socket)

    async def flushed(self) -> None:
        """Wait until the system has taken all messages."""
        while self._open and (self._outbox or self._packets):
            await asyncio.sleep(0.001)

    def close(self) -> None:
        """Close this end, which the other end notices. Queued messages are dropped."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._drop_packets()

    def _drop_packets(self) -> None:
        for packet in self._packets:
            _close(packet.descriptor)
        self._packets.clear()

    def _pack(self) -> None:
        """Turn the outbox into packets: small messages together, large ones in parts."""
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
        for _ in range(MAX_PACKETS):
            if not self._open:
                return
            try:
                data, descriptors, *_ = socket.recv_fds(self._socket, PACKET_BYTES + 1, 1)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # the other end is gone; what it sent before can still be read
            except OSError:
                self._end()
                return
            if not data:
                self._end()
                return
            self._parts.append(data[1:])
            if data[:1] == LAST:
                text = b"".join(self._parts)
                self._parts.clear()
                self._deliver(text, descriptors[0] if descriptors else None)

    def _deliver(self, text: bytes, descriptor: int | None) -> None:
        stream = io.BytesIO(text)
        try:
            while stream.tell() < len(text):
                self._on_message(pickle.load(stream), descriptor)  # noqa: S301 - see the class
        except Exception:
            # A task that waits for a lost message would wait for ever; the end of a channel is handled on both sides.
            logger.exception("a message between the server's processes cannot be taken; their channel is closed")
            self._end()

    def _end(self) -> None:
        self.close()
        self._on_closed()


def _packets(text: bytes) -> Iterator[Packet]:
    starts = range(0, len(text), PACKET_BYTES)
    for start in starts:
        last = start == starts[-1]
        yield Packet((LAST if last else CONTINUED) + text[start : start + PACKET_BYTES], None)


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
