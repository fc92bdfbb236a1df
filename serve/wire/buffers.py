"""Memory for bodies, replies and tensors, used again: fresh pages cost as much as the copy that fills them."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from threading import Lock

import numpy as np

from yolo_assigner.serve.errors import BusyError, TooLargeError
from yolo_assigner.serve.wire.dtypes import Array

ALIGNMENT = 64  # bytes: a cache line, and enough for any vector instruction
GRAIN = 2**20  # bytes; capacities are multiples of it, so that bodies of nearly one size share buffers


def lease(memory: Array, on_return: Callable[[], object]) -> Array:
    """Lend memory until the last view of it is gone.

    The returned array is what all its slices, memoryviews and arrays made from those refer to. So a lease outlives the
    request that it was made for, where an engine still reads the request's inputs or a connection still sends its
    reply, and no path of a request has to return it.

    Args:
        memory: (n,) uint8.
        on_return: Called once when the last view is gone, in any thread and between any two operations: it must not
            wait for a lock. Not called when the interpreter ends.

    Returns:
        A view of the memory, (n,) uint8.
    """
    # Slices of a plain slice would refer to the memory itself and not to the lease; slices of a foreign buffer do not.
    view = np.frombuffer(memory.data, np.uint8)
    weakref.finalize(view, on_return).atexit = False
    return view


class BufferPool:
    """Lends buffers, and lends them again once they are returned; see :func:`lease`.

    Called from one thread; buffers may be returned in any.

    Args:
        keep_bytes: Most bytes of idle buffers that are kept.
    """

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._idle: list[Array] = []
        self._lent_bytes = 0
        self._returned: deque[Array] = deque()  # appending is atomic, so that any thread may do it

    @property
    def held_bytes(self) -> int:
        """Bytes of the buffers that are idle, or lent and to be kept."""
        return self._lent_bytes + sum(buffer.nbytes for buffer in self._idle)

    def take(self, size: int) -> Array:
        """Lend at least ``size`` bytes of memory of arbitrary content, (n,) uint8."""
        if size > self._keep_bytes:
            buffer = self._make(size)
            return lease(buffer, lambda: self._drop(buffer))
        self._collect()
        fitting = [place for place, buffer in enumerate(self._idle) if buffer.nbytes >= size]
        fitting.reverse()  # of equal ones that which was returned last: its pages are the likeliest in a cache
        if fitting:
            buffer = self._idle.pop(min(fitting, key=lambda place: self._idle[place].nbytes))
        else:
            buffer = self._make(-(-size // GRAIN) * GRAIN)
            self._shrink(self._keep_bytes - buffer.nbytes)
        self._lent_bytes += buffer.nbytes
        return lease(buffer, lambda: self._returned.append(buffer))

    def close(self) -> None:
        """Drop all idle buffers."""
        self._collect()
        self._shrink(0)

    def _collect(self) -> None:
        while self._returned:
            buffer = self._returned.popleft()
            self._lent_bytes -= buffer.nbytes
            self._idle.append(buffer)

    def _shrink(self, most_bytes: int) -> None:
        """Drop idle buffers, the smallest first, until no more bytes are held."""
        self._idle.sort(key=lambda buffer: buffer.nbytes, reverse=True)
        while self._idle and self.held_bytes > most_bytes:
            self._drop(self._idle.pop())

    def _make(self, size: int) -> Array:
        """Make a buffer of arbitrary content, (size,) uint8."""
        return np.empty(size, np.uint8)

    def _drop(self, buffer: Array) -> None:
        """Free what belongs to a buffer beside its memory; in any thread."""


class TensorMemory:
    """Lends memory for the tensors of requests, in any thread.

    Args:
        limit: Most bytes of the tensors of one request. About as much is kept between requests.
        total: Most bytes of all requests at one time. A request that is alone gets its memory, however large.
    """

    def __init__(self, limit: int, total: int) -> None:
        self._limit, self._total = limit, total
        self._pool = BufferPool(limit + GRAIN)
        self._lent_bytes = 0
        self._returned_sizes: deque[int] = deque()
        self._lock = Lock()

    def take(self, sizes: Sequence[int]) -> list[memoryview]:
        """Lend aligned memory of arbitrary content, until the last view of all its pieces is gone.

        Args:
            sizes: Bytes of each tensor of a request.

        Returns:
            One piece for each size.

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
            whole = self._take(starts[-1]).data
        return [whole[start : start + size] for start, size in zip(starts, sizes, strict=False)]

    def _take(self, size: int) -> Array:
        while self._returned_sizes:
            self._lent_bytes -= self._returned_sizes.popleft()
        if self._lent_bytes and self._lent_bytes + size > self._total:
            raise BusyError(
                f"requests under way have {self._lent_bytes} bytes from shared memory, this one has {size}, and "
                f"{self._total} are allowed together; try again in a moment"
            )
        buffer = self._pool.take(size + ALIGNMENT)
        start = -buffer.ctypes.data % ALIGNMENT
        view = lease(buffer[start : start + size], lambda: self._returned_sizes.append(size))
        self._lent_bytes += size
        return view
