"""Memory for request bodies, used again and again: fresh pages cost as much as the transfer that fills them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate
from threading import Lock
from weakref import ref

import numpy as np

from yolo_assigner.serve.errors import BusyError, TooLargeError
from yolo_assigner.serve.wire.dtypes import Array

GRAIN = 2**20  # bytes; capacities are multiples of it, so that bodies of nearly one size share buffers


class BufferPool:
    """Buffers that are handed out again once nothing refers to them any more.

    Nobody gives a buffer back: as long as one array is a view of it, whoever holds that array, it is taken. So a view
    never sees another request's bytes, also when a request is dropped while an engine still reads its inputs.

    Called from one thread, that of the event loop.

    Args:
        keep_bytes: Most bytes of idle buffers that are kept.
    """

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._buffers: list[Array] = []

    @property
    def held_bytes(self) -> int:
        """Bytes of all buffers that the pool knows, taken or idle."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def take(self, size: int) -> Array:
        """At least ``size`` bytes of memory of any content, (n,) uint8; free again when the last view is gone."""
        if size > self._keep_bytes:
            return self._make(size)
        idle = [buffer for buffer in self._buffers if _references(buffer) <= _IDLE_REFERENCES]
        fitting = [buffer for buffer in idle if buffer.nbytes >= size]
        if fitting:
            return min(fitting, key=lambda buffer: buffer.nbytes)
        buffer = self._make(-(-size // GRAIN) * GRAIN)
        self._buffers.append(buffer)
        self._shrink(idle)
        return buffer

    def _make(self, size: int) -> Array:
        """New memory of any content."""
        return np.empty(size, np.uint8)

    def _shrink(self, idle: list[Array]) -> None:
        """Let go of idle buffers, the smallest first, until what is held is within bounds."""
        held = self.held_bytes
        dropped = set()
        for buffer in sorted(idle, key=lambda one: one.nbytes):
            if held <= self._keep_bytes:
                break
            dropped.add(id(buffer))
            held -= buffer.nbytes
        self._buffers = [buffer for buffer in self._buffers if id(buffer) not in dropped]


def _references(buffer: object) -> int:
    return sys.getrefcount(buffer)


def _references_when_idle() -> int:
    """Of an object that stands in one list and nowhere else, counted as ``take`` counts."""
    buffers = [np.empty(1, np.uint8)]
    return next(iter([_references(buffer) for buffer in buffers]))


_IDLE_REFERENCES = _references_when_idle()


ALIGNMENT = 64  # bytes: a cache line, and enough for any vector instruction


class TensorMemory:
    """Hands out memory, in any thread.

    Args:
        limit: Most bytes of the tensors of one request. About as much is kept between requests.
        total: Most bytes of all requests at one time. One is let in alone, however large.
    """

    def __init__(self, limit: int, total: int) -> None:
        self._limit, self._total = limit, total
        self._pool = BufferPool(limit + GRAIN)
        self._taken: list[ref[Array]] = []
        # The pool sees by their references which buffers are idle: right in any thread, but in one at a time.
        self._lock = Lock()

    def take(self, sizes: Sequence[int]) -> list[memoryview]:
        """Aligned memory of any content, one piece per size; free again when the last view of all of them is gone.

        Args:
            sizes: Bytes of each tensor of a request.

        Raises:
            TooLargeError: Together they are over the limit.
            BusyError: The requests under way leave no room.
        """
        size = sum(sizes)
        if size > self._limit:
            raise TooLargeError(
                f"the inputs in shared memory have {size} bytes, the limit is {self._limit}; send fewer images, FP16, "
                "or raise --max-request-bytes"
            )
        starts = list(accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))
        with self._lock:
            view = self._reserve(starts[-1])
        whole = view.data  # all pieces are slices of it, so that each keeps the view alive
        return [whole[start : start + size] for start, size in zip(starts, sizes, strict=False)]

    def _reserve(self, size: int) -> Array:
        alive = [view for taken in self._taken if (view := taken()) is not None]
        used = sum(view.nbytes for view in alive)
        if alive and used + size > self._total:
            raise BusyError(
                f"requests under way have {used} bytes from shared memory, this one has {size}, and {self._total} are "
                "allowed together; try again in a moment"
            )
        buffer = self._pool.take(size + ALIGNMENT)
        start = -buffer.ctypes.data % ALIGNMENT
        view = buffer[start : start + size]
        self._taken = [ref(one) for one in (*alive, view)]
        return view
