"""Memory that two processes see: made by one of them, read by the other.

It has no name and no place in any file system, is not bound by the size of /dev/shm, and is gone with the last process
that holds it, however that ends.
"""

from __future__ import annotations

import errno
import mmap
import os
import weakref
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import numpy as np

from yolo_assigner.serve.errors import BusyError, exhausted
from yolo_assigner.serve.process.channel import Channel
from yolo_assigner.serve.process.messages import SegmentGone, SegmentMade, Span
from yolo_assigner.serve.system import is_spare
from yolo_assigner.serve.wire.buffers import BufferPool
from yolo_assigner.serve.wire.dtypes import Array

MARKS = 2**16  # more than there can be calls at one time
INLINE_BYTES = 2**16  # up to here a copy in a message costs less than memory of its own


class Segment(NamedTuple):
    """A piece of memory that was made here.

    Attributes:
        number: What both sides call it.
        descriptor: Of its file.
        address: Where it is in this process.
        size: Bytes.
    """

    number: int
    descriptor: int
    address: int
    size: int


class SharedPool(BufferPool):
    """Buffers in segments, but for small ones.

    Args:
        keep_bytes: Most bytes of idle buffers that are kept.
        on_gone: Told the number of a segment that was let go of; in any thread.
    """

    def __init__(self, keep_bytes: int, on_gone: Callable[[int], None]) -> None:
        super().__init__(keep_bytes)
        self._on_gone = on_gone
        self._numbers = count()
        self._segments: dict[int, Segment] = {}

    def take(self, size: int) -> Array:
        """At least ``size`` bytes of memory of any content, (n,) uint8; free again when the last view is gone."""
        return np.empty(size, np.uint8) if size <= INLINE_BYTES else super().take(size)

    def locate(self, view: memoryview) -> Span | None:
        """Where memory that was taken here lies; None when it is in no segment."""
        if not view.nbytes:
            return None
        address = np.frombuffer(view, np.uint8).ctypes.data
        for number, _, start, size in list(self._segments.values()):  # others may go meanwhile
            if start <= address < start + size:
                return Span(number, address - start, view.nbytes)
        return None

    def segment(self, number: int) -> Segment:
        """A segment that is alive."""
        return self._segments[number]

    def close(self) -> None:
        """Let go of all of them."""
        self._buffers.clear()

    def _make(self, size: int) -> Array:
        number = next(self._numbers)
        descriptor = os.memfd_create("yolo-assigner", os.MFD_CLOEXEC)
        try:
            if is_spare(descriptor):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            os.ftruncate(descriptor, size)
            buffer = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
        except BaseException:
            os.close(descriptor)
            raise
        self._segments[number] = Segment(number, descriptor, buffer.ctypes.data, size)
        when_gone(buffer, lambda: self._forget(number))
        return buffer

    def _forget(self, number: int) -> None:
        os.close(self._segments.pop(number).descriptor)
        self._on_gone(number)


class Marks:
    """A byte for each call, set by the side that computes and seen at once by the other, even if the first dies then.

    Args:
        descriptor: Of the memory, made by the other side; None makes it.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("yolo-assigner-marks", os.MFD_CLOEXEC) if descriptor is None else descriptor
        if descriptor is None:
            os.ftruncate(self.descriptor, MARKS)
        self._memory = mmap.mmap(self.descriptor, MARKS)

    def __getitem__(self, number: int) -> bool:
        """Whether a call has its mark."""
        return self._memory[number % MARKS] != 0

    def __setitem__(self, number: int, value: bool) -> None:
        self._memory[number % MARKS] = value

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()
        os.close(self.descriptor)


class MappedSegments:
    """Segments that the other side made."""

    def __init__(self) -> None:
        self._buffers: dict[int, Array] = {}

    def add(self, number: int, size: int, descriptor: int | None) -> bool:
        """Map one; its descriptor is closed.

        Args:
            number: What both sides call it.
            size: Bytes.
            descriptor: Of its file; None: this process had none left when it came.

        Returns:
            False when there are no descriptors or no memory for it.
        """
        if descriptor is None:
            return False
        try:
            self._buffers[number] = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
        except OSError as error:
            if exhausted(error) is None:
                raise
            return False
        finally:
            os.close(descriptor)
        return True

    def drop(self, number: int) -> None:
        """Unmap one, as soon as its last view is gone."""
        self._buffers.pop(number, None)

    def view(self, span: Span, on_gone: Callable[[], None]) -> memoryview:
        """A part of one.

        Args:
            span: Which.
            on_gone: Told when nothing refers to it any more; in any thread.

        Raises:
            BusyError: The segment could not be mapped.
        """
        if span.segment not in self._buffers:
            raise BusyError(
                "the server has no file descriptors or no memory left for this request; try again in a moment, or "
                "raise `ulimit -n`"
            )
        part = self._buffers[span.segment][span.start : span.start + span.size]
        when_gone(part, on_gone)
        return part.data


def when_gone(array: Array, call: Callable[[], None]) -> None:
    """Call once nothing refers to an array or to its memory through it; not when the interpreter ends."""
    weakref.finalize(array, call).atexit = False


class Lender:
    """Lends memory to the other end of a channel, which is told of each segment once.

    Args:
        pool: Of the memory.
        channel: To the other end.
    """

    def __init__(self, pool: SharedPool, channel: Channel) -> None:
        self._pool = pool
        self._channel = channel
        self._announced: set[int] = set()
        self._lent: dict[int, memoryview] = {}

    def lend(self, number: int, view: memoryview) -> Span | None:
        """Lend memory until it is given back; None when it is in no segment.

        Args:
            number: Of the call that it belongs to.
            view: Taken from the pool, or any.

        Raises:
            OSError: No descriptor is left.
        """
        span = self._pool.locate(view)
        if span is None:
            return None
        if span.segment not in self._announced:
            segment = self._pool.segment(span.segment)
            self._channel.send(SegmentMade(segment.number, segment.size), segment.descriptor)
            self._announced.add(span.segment)
        self._lent[number] = view
        return span

    def give_back(self, number: int) -> None:
        """The other side does not read the memory of this call any more."""
        self._lent.pop(number, None)

    def give_all_back(self) -> None:
        """There is no other side any more."""
        self._lent.clear()

    def announce_again(self, segment: int) -> None:
        """The other side could not map a segment; it is sent again when it is lent the next time."""
        self._announced.discard(segment)

    def forget(self, segment: int) -> None:
        """A segment is gone; from any thread."""
        self._announced.discard(segment)
        self._channel.send_soon(SegmentGone(segment))
