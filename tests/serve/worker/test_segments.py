"""Memory that two ends of a channel lend each other, here both in one process."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolo_assigner.serve.errors import BusyError
from yolo_assigner.serve.process.channel import Channel
from yolo_assigner.serve.process.messages import SegmentMade, Span
from yolo_assigner.serve.process.segments import INLINE_BYTES, LeaseTable, SharedPool, StartedFlags
from yolo_assigner.serve.wire.buffers import GRAIN, lease
from yolo_assigner.serve.wire.dtypes import Array

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has such sockets and memory")
MIB = 2**20


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class End:
    """One end of a channel, its memory, and what it lent and borrowed."""

    def __init__(self, end: socket.socket, keep_bytes: int) -> None:
        self.channel = Channel(end, self.take, lambda: None)
        self.pool = SharedPool(keep_bytes, self.forget)
        self.leases = LeaseTable(self.pool, self.channel)
        self.got: dict[int, bytes | Span] = {}

    def take(self, message: Any, descriptor: int | None) -> None:
        """Keep where the memory of a call lies; all else is about leases."""
        if type(message) is tuple:
            self.got[message[0]] = message[1]
        else:
            self.leases.handle(message, descriptor)

    def forget(self, segment: int) -> None:
        """Tell the other end that a segment of this one was dropped."""
        self.leases.forget(segment)

    def send(self, call: int, view: memoryview) -> None:
        """Lend memory."""
        self.channel.send((call, self.leases.lend(call, view)))

    async def borrow(self, call: int) -> memoryview:
        """Wait for memory that the other end lends."""
        async with asyncio.timeout(10):
            while call not in self.got:
                await asyncio.sleep(0.001)
        return self.leases.borrow(call, self.got.pop(call))


def with_two_ends(scenario: Callable[[End, End], Awaitable[None]], keep_bytes: int = 4 * MIB) -> None:
    async def run() -> None:
        ends = [End(end, keep_bytes) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
        try:
            await scenario(*ends)
        finally:
            for end in ends:
                end.channel.close()

    asyncio.run(run())


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "derive",
    [
        lambda view: view[4:],
        lambda view: view[4:][::2],
        lambda view: view.reshape(4, -1).T,
        lambda view: view.data,
        lambda view: view[8:].data[8:],
        lambda view: np.frombuffer(view[8:].data, np.float32)[1:],
    ],
    ids=["slice", "slice of a slice", "reshaped", "memoryview", "part of one", "other type"],
)
def test_a_lease_ends_with_the_last_view(derive: Callable[[Array], Any]) -> None:
    ended: list[bool] = []
    view = lease(np.zeros(64, np.uint8), lambda: ended.append(True))
    derived = derive(view)
    del view
    assert ended == []
    del derived
    assert ended == [True]


def test_what_one_end_writes_the_other_reads() -> None:
    async def scenario(ours: End, theirs: End) -> None:
        part = ours.pool.take(MIB)[64:1064].data
        ours.send(1, part)
        view = await theirs.borrow(1)
        part[:] = bytes(range(250)) * 4  # after it was lent: the same memory, not a copy
        assert bytes(view) == bytes(range(250)) * 4

    with_two_ends(scenario)


def test_a_lease_lasts_as_long_as_any_view_on_either_side() -> None:
    async def scenario(ours: End, theirs: End) -> None:
        buffer = ours.pool.take(GRAIN)
        place = address(buffer.data)
        ours.send(1, buffer[:1000].data)
        view = await theirs.borrow(1)
        inner = np.frombuffer(view, np.uint8)[5:].reshape(5, -1).T
        del buffer, view
        await asyncio.sleep(0.05)  # nothing is returned meanwhile
        other = ours.pool.take(GRAIN)
        assert address(other.data) != place
        del inner, other
        await until(lambda: address(ours.pool.take(GRAIN).data) == place)

    with_two_ends(scenario)


def test_all_that_was_lent_comes_back_when_the_other_end_has_ended() -> None:
    async def scenario(ours: End, theirs: End) -> None:
        buffer = ours.pool.take(GRAIN)
        place = address(buffer.data)
        ours.send(1, buffer.data)
        view = await theirs.borrow(1)
        del buffer
        assert address(ours.pool.take(GRAIN).data) != place
        ours.leases.return_all()
        assert place in {address(one.data) for one in [ours.pool.take(GRAIN) for _ in range(2)]}
        del view

    with_two_ends(scenario)


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES])
def test_small_and_foreign_memory_is_copied(size: int) -> None:
    async def scenario(ours: End, theirs: End) -> None:
        small = ours.pool.take(size)[:size].data
        for call, view in enumerate([small, memoryview(bytes(size)), memoryview(b"x" * MIB)]):
            ours.send(call, view)
            assert bytes(await theirs.borrow(call)) == bytes(view)
        assert ours.pool.find(ours.pool.take(INLINE_BYTES + 1).data) is not None
        assert ours.pool.find(memoryview(b"elsewhere")) is None

    with_two_ends(scenario)


def test_a_segment_that_could_not_be_mapped_is_announced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(ours: End, theirs: End) -> None:
        buffer = ours.pool.take(MIB)
        place = address(buffer.data)
        with monkeypatch.context() as patched:
            patched.setattr(LeaseTable, "map", lambda *_: False)
            ours.send(1, buffer.data)
            with pytest.raises(BusyError, match="ulimit -n"):
                await theirs.borrow(1)
        del buffer
        await until(lambda: address(ours.pool.take(MIB).data) == place)  # it was returned all the same
        ours.send(2, ours.pool.take(MIB).data)
        assert len(await theirs.borrow(2)) == MIB

    with_two_ends(scenario)


def test_segments_are_used_again_and_those_that_are_dropped_leave_nothing() -> None:
    gone: list[int] = []
    before = descriptors()
    pool = SharedPool(3 * GRAIN, gone.append)
    first, again = (pool.find(pool.take(GRAIN).data) for _ in range(2))
    assert first == again
    assert first is not None
    many = [pool.take(2 * GRAIN) for _ in range(4)]
    del many
    pool.take(3 * GRAIN)  # room is made when new memory is made
    assert len(gone) == 5
    assert first[0].number in gone
    huge = pool.take(8 * GRAIN)
    assert pool.held_bytes == 3 * GRAIN
    del huge
    assert len(gone) == 6  # at once
    pool.close()
    assert descriptors() == before


def test_a_dropped_segment_stays_while_it_is_read() -> None:
    async def scenario(ours: End, theirs: End) -> None:
        buffer = ours.pool.take(MIB)
        buffer[:4] = (1, 2, 3, 4)
        ours.send(1, buffer[:4].data)
        view = await theirs.borrow(1)
        del buffer
        ours.leases.return_all()  # more than is kept: the segment goes with its lease
        await until(lambda: not mapped(theirs))
        assert bytes(view) == bytes((1, 2, 3, 4))

    def mapped(end: End) -> bool:
        try:
            end.leases.borrow(3, Span(0, 0, 1))
        except BusyError:
            return False
        return True

    with_two_ends(scenario, keep_bytes=0)


def test_a_message_without_its_descriptor_maps_nothing() -> None:
    """As when this process had none left for it."""

    async def scenario(ours: End, _: End) -> None:
        assert not ours.leases.map(SegmentMade(0, MIB), None)

    with_two_ends(scenario)


def test_flags_are_seen_through_either_mapping() -> None:
    ours = StartedFlags()
    theirs = StartedFlags(os.dup(ours.descriptor))
    before = ours[70_000]
    theirs[70_000] = True
    assert (before, ours[70_000], ours[70_001]) == (False, True, False)
    ours.close()
    theirs.close()
