"""Memory that two processes map: segments made by one of them, lent to the other for the time of a call.

Segments have no name and no place in any file system, are not bound by the size of /dev/shm, and are gone with the last
process that maps them, however that ends.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import numpy as np

from yolo_assigner.serve.errors import BusyError, exhausted
from yolo_assigner.serve.process.channel import Channel
from yolo_assigner.serve.process.messages import (
    LeaseMessage,
    Returned,
    SegmentGone,
    SegmentLost,
    SegmentMade,
    Span,
)
from yolo_assigner.serve.system import is_spare
from yolo_assigner.serve.wire.buffers import BufferPool, lease
from yolo_assigner.serve.wire.dtypes import Array

MAX_CALLS = 2**16  # more than there can be at one time
INLINE_BYTES = 2**16  # up to here a copy in a message costs less than memory of its own


class Segment(NamedTuple):
    """Memory that was made by this process.

    Attributes:
        number: Identifies the segment in both processes.
        descriptor: Descriptor of its file.
        address: Address in this process.
        size: Number of bytes.
    """

    number: int
    descriptor: int
    address: int
    size: int


class SharedPool(BufferPool):
    """Lends buffers that lie in segments, except small ones.

    Args:
        keep_bytes: Most bytes of idle buffers that are kept.
        on_gone: Called with the number of a segment that was dropped; in any thread.
    """

    def __init__(self, keep_bytes: int, on_gone: Callable[[int], None]) -> None:
        super().__init__(keep_bytes)
        self._on_gone = on_gone
        self._numbers = count()
        self._segments: dict[int, Segment] = {}  # by address

    def take(self, size: int) -> Array:
        """Lend at least ``size`` bytes of memory of arbitrary content, (n,) uint8."""
        return np.empty(size, np.uint8) if size <= INLINE_BYTES else super().take(size)

    def find(self, view: memoryview) -> tuple[Segment, Span] | None:
        """Return the segment in which memory of this pool lies, and where in it; None for all other memory."""
        if not view.nbytes:
            return None
        address = np.frombuffer(view, np.uint8).ctypes.data
        for segment in list(self._segments.values()):  # other threads may drop segments meanwhile
            if segment.address <= address < segment.address + segment.size:
                return segment, Span(segment.number, address - segment.address, view.nbytes)
        return None

    def _make(self, size: int) -> Array:
        descriptor = os.memfd_create("yolo-assigner", os.MFD_CLOEXEC)
        try:
            if is_spare(descriptor):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            os.ftruncate(descriptor, size)
            buffer = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
        except BaseException:
            os.close(descriptor)
            raise
        address = buffer.ctypes.data
        self._segments[address] = Segment(next(self._numbers), descriptor, address, size)
        return buffer

    def _drop(self, buffer: Array) -> None:
        segment = self._segments.pop(buffer.ctypes.data)
        os.close(segment.descriptor)
        self._on_gone(segment.number)


class LeaseTable:
    """What the two ends of a channel lend each other: bodies of calls one way, and replies the other.

    A lender announces each segment once, and keeps the memory of a call until it is returned. A borrower maps the
    segments that were announced, and returns the memory of a call when the last view of it is gone.

    Args:
        pool: Memory of this end.
        channel: Leads to the other end.
    """

    def __init__(self, pool: SharedPool, channel: Channel) -> None:
        self._pool = pool
        self._channel = channel
        self._announced: set[int] = set()
        self._lent: dict[int, memoryview] = {}
        self._mapped: dict[int, Array] = {}

    def lend(self, call: int, view: memoryview) -> bytes | Span:
        """Lend memory to the other end until it returns it.

        Args:
            call: Identifies the call to which the memory belongs.
            view: Memory of the pool, or any other.

        Returns:
            Where the memory lies; a copy of it when it is not in a segment.

        Raises:
            OSError: This process has no file descriptor left.
        """
        found = self._pool.find(view)
        if found is None:
            return bytes(view)
        segment, span = found
        if segment.number not in self._announced:
            self._channel.send(SegmentMade(segment.number, segment.size), segment.descriptor)
            self._announced.add(segment.number)
        self._lent[call] = view
        return span

    def borrow(self, call: int, body: bytes | Span) -> memoryview:
        """Return memory that the other end lent; it is returned when the last view is gone.

        Raises:
            BusyError: Its segment could not be mapped.
        """
        if isinstance(body, bytes):
            return memoryview(body)
        segment = self._mapped.get(body.segment)
        if segment is None:
            self._channel.send(Returned(call))
            raise BusyError(
                "the server has no file descriptors or no memory left for this request; try again in a moment, or "
                "raise `ulimit -n`"
            )
        part = segment[body.start : body.start + body.size]
        return lease(part, lambda: self._channel.send_soon(Returned(call))).data

    def handle(self, message: LeaseMessage, descriptor: int | None) -> None:
        """Take a message of the other end about memory, and the descriptor that came with it."""
        match message:
            case Returned():
                self._lent.pop(message.id, None)
            case SegmentMade():
                if not self.map(message, descriptor):
                    self._channel.send(SegmentLost(message.number))
            case SegmentLost():
                self._announced.discard(message.number)
            case SegmentGone():
                self._mapped.pop(message.number, None)

    def return_all(self) -> None:
        """Take back all memory that was lent: the other end has ended."""
        self._lent.clear()

    def forget(self, segment: int) -> None:
        """Tell the other end that a segment of this end was dropped; from any thread."""
        self._announced.discard(segment)
        self._channel.send_soon(SegmentGone(segment))

    def map(self, segment: SegmentMade, descriptor: int | None) -> bool:
        """Map a segment of the other end, and close its descriptor.

        Args:
            segment: Its number and size.
            descriptor: Descriptor of its file; None when this process had none left for it.

        Returns:
            Whether the system had a descriptor and memory for it.
        """
        if descriptor is None:
            return False
        try:
            self._mapped[segment.number] = np.frombuffer(mmap.mmap(descriptor, segment.size), np.uint8)
        except OSError as error:
            if exhausted(error) is None:
                raise
            return False
        finally:
            os.close(descriptor)
        return True


class StartedFlags:
    """One byte for each call, set by the worker when an engine starts on it, and seen by the server at once.

    A message would be lost when the worker dies right after. A flag tells the server that the call must not be sent to
    the next worker.

    Args:
        descriptor: Descriptor of the memory that the other process made; None makes it.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("yolo-assigner-flags", os.MFD_CLOEXEC) if descriptor is None else descriptor
        if descriptor is None:
            os.ftruncate(self.descriptor, MAX_CALLS)
        self._memory = mmap.mmap(self.descriptor, MAX_CALLS)

    def __getitem__(self, call: int) -> bool:
        """Return whether an engine has started on a call."""
        return self._memory[call % MAX_CALLS] != 0

    def __setitem__(self, call: int, value: bool) -> None:
        self._memory[call % MAX_CALLS] = value

    def close(self) -> None:
        """Unmap the memory."""
        self._memory.close()
        os.close(self.descriptor)
