"""Reused memory: what somebody still looks at is never handed out again."""

from __future__ import annotations

import threading

import numpy as np

from yolo_assigner.serve.wire.buffers import GRAIN, BufferPool
from yolo_assigner.serve.wire.dtypes import Array


def address(buffer: Array) -> int:
    """Where it lies."""
    return int(buffer.ctypes.data)


def test_a_buffer_is_used_again() -> None:
    pool = BufferPool(8 * GRAIN)
    buffer = pool.take(100)
    place = address(buffer)
    del buffer
    again = pool.take(GRAIN)  # of the same capacity
    assert address(again) == place


def test_any_view_keeps_it_taken() -> None:
    """Slices, memoryviews, and arrays made from those, as a decoded request holds them."""
    pool = BufferPool(8 * GRAIN)
    buffer = pool.take(100)
    place = address(buffer)
    view = np.frombuffer(buffer[8:16].data, np.float32).reshape(2, 1)
    del buffer
    other = pool.take(100)
    assert address(other) != place
    del other
    view = view.T
    assert address(pool.take(100)) != place
    del view
    assert place in {address(one) for one in (pool.take(100), pool.take(100))}


def test_a_view_in_another_thread_keeps_it_taken() -> None:
    """An engine still reads the inputs of a request whose caller is gone."""
    pool = BufferPool(8 * GRAIN)
    may_end = threading.Event()
    buffer = pool.take(100)
    place = address(buffer)
    thread = threading.Thread(target=lambda _: may_end.wait(10), args=({"x": buffer[:4]},))
    thread.start()
    del buffer
    assert address(pool.take(100)) != place
    may_end.set()
    thread.join()
    del thread
    assert place in {address(one) for one in (pool.take(100), pool.take(100))}


def test_what_is_kept_is_bounded() -> None:
    pool = BufferPool(4 * GRAIN)
    taken = [pool.take(GRAIN) for _ in range(8)]
    assert pool.held_bytes == 8 * GRAIN  # all in use
    del taken
    large = pool.take(3 * GRAIN)
    assert pool.held_bytes <= 4 * GRAIN
    assert large.nbytes == 3 * GRAIN


def test_what_is_larger_than_all_that_is_kept() -> None:
    pool = BufferPool(GRAIN)
    assert pool.take(5 * GRAIN).nbytes == 5 * GRAIN
    assert pool.held_bytes == 0


def test_the_smallest_that_fits() -> None:
    pool = BufferPool(16 * GRAIN)
    small, large = pool.take(GRAIN), pool.take(8 * GRAIN)
    place = address(small)
    del small, large
    assert address(pool.take(10)) == place
