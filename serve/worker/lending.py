"""Memory of ours that the other side reads for a while."""

from __future__ import annotations

from yolo_assigner.serve.worker.channel import Channel
from yolo_assigner.serve.worker.messages import SegmentGone, SegmentMade, Span
from yolo_assigner.serve.worker.segments import SharedPool


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
