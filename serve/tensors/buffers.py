"""Memory for request bodies, used again and again: fresh pages cost as much as the transfer that fills them."""

from __future__ import annotations

import sys

import numpy as np

from yolo_assigner.serve.tensors.datatypes import Array

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
