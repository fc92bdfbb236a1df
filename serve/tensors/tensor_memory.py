"""Memory for tensors that are copied out of shared memory, used again and again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from threading import Lock
from weakref import ref

from yolo_assigner.serve.errors import BusyError, TooLargeError
from yolo_assigner.serve.tensors.buffers import GRAIN, BufferPool
from yolo_assigner.serve.tensors.datatypes import Array

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
