"""Memory that two processes see, here mapped twice in one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from yolo_assigner.serve.process.segments import INLINE_BYTES, MappedSegments, SharedPool
from yolo_assigner.serve.wire.buffers import GRAIN

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has such sockets and memory")
MIB = 2**20


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_one_side_writes_the_other_reads() -> None:
    gone: list[str] = []
    pool, mapped = SharedPool(4 * MIB, lambda _: None), MappedSegments()
    buffer = pool.take(MIB)
    part = buffer[64:1064].data
    span = pool.locate(part)
    assert span is not None
    assert (span.start, span.size) == (64, 1000)
    segment = pool.segment(span.segment)
    mapped.add(segment.number, segment.size, os.dup(segment.descriptor))
    view = mapped.view(span, lambda: gone.append("view"))
    part[:] = bytes(range(250)) * 4
    assert bytes(view) == bytes(range(250)) * 4
    inner = np.frombuffer(view, np.uint8)[5:].reshape(5, -1)
    del view
    assert gone == []
    assert inner[0, 0] == 5
    del inner
    assert gone == ["view"]


def test_small_memory_is_in_no_segment() -> None:
    pool = SharedPool(4 * MIB, lambda _: None)
    assert pool.locate(pool.take(INLINE_BYTES).data) is None
    assert pool.locate(memoryview(b"elsewhere")) is None
    assert pool.locate(memoryview(b"")) is None
    assert pool.locate(pool.take(INLINE_BYTES + 1).data) is not None


def test_segments_are_used_again_and_those_that_are_let_go_of_leave_nothing() -> None:
    gone: list[int] = []
    before = descriptors()
    pool = SharedPool(3 * GRAIN, gone.append)
    first = pool.locate(pool.take(GRAIN).data)
    again = pool.locate(pool.take(GRAIN).data)
    assert first == again
    assert first is not None
    many = [pool.take(2 * GRAIN) for _ in range(4)]
    del many
    pool.take(3 * GRAIN)  # room is made when new memory is made
    assert len(gone) == 4 or first.segment in gone
    huge = pool.take(8 * GRAIN)
    del huge
    assert len(gone) >= 5
    pool.close()
    assert descriptors() == before


def test_a_dropped_segment_stays_while_it_is_looked_at() -> None:
    pool, mapped = SharedPool(0, lambda _: None), MappedSegments()
    buffer = pool.take(MIB)
    buffer[:4] = (1, 2, 3, 4)
    span = pool.locate(buffer[:4].data)
    assert span is not None
    segment = pool.segment(span.segment)
    mapped.add(segment.number, segment.size, os.dup(segment.descriptor))
    view = mapped.view(span, lambda: None)
    del buffer
    mapped.drop(span.segment)
    assert bytes(view) == bytes((1, 2, 3, 4))
