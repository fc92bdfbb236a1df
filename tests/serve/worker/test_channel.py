"""Messages between two processes; both ends are in this one here."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from yolo_assigner.serve.process.channel import PACKET_BYTES, Channel

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has such sockets and memory")


class End:
    """One end, and the messages that it received."""

    def __init__(self, end: socket.socket) -> None:
        self.got: list[Any] = []
        self.descriptors: list[int] = []
        self.closed = 0
        self.socket = end
        self.channel = Channel(end, self._take, self._close)

    def _take(self, message: Any, descriptor: int | None) -> None:
        self.got.append(message)
        if descriptor is not None:
            self.descriptors.append(descriptor)

    def _close(self) -> None:
        self.closed += 1

    async def until(self, count: int) -> None:
        """Wait for so many messages."""
        async with asyncio.timeout(20):
            while len(self.got) < count:
                await asyncio.sleep(0.001)


def with_two_ends(scenario: Callable[[End, End], Awaitable[None]]) -> None:
    async def run() -> None:
        ends = [End(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
        try:
            await scenario(*ends)
        finally:
            for end in ends:
                end.channel.close()

    asyncio.run(run())


@pytest.mark.parametrize("first", ["reading", "sending"])
def test_messages_sent_before_the_other_end_closed_arrive(first: str) -> None:
    """They arrive also when it left a message unread, which the system reports first."""

    async def scenario(ours: End, theirs: End) -> None:
        theirs.channel.send("last words")
        theirs.channel.flush()
        ours.socket.send(b"unread")
        theirs.channel.close()
        if first == "sending":
            ours.channel.send("to nobody")
            ours.channel.flush()
        assert ours.got == []
        await ours.until(1)
        await asyncio.sleep(0.05)
        assert (ours.got, ours.closed) == (["last words"], 1)

    with_two_ends(scenario)


@pytest.mark.parametrize("size", [0, 1, PACKET_BYTES - 20, PACKET_BYTES, PACKET_BYTES + 1, 5 * PACKET_BYTES + 7])
def test_messages_of_any_size_arrive_whole(size: int) -> None:
    async def scenario(ours: End, theirs: End) -> None:
        text = os.urandom(size)
        for message in ("before", text, "after"):
            ours.channel.send(message)
        await theirs.until(3)
        assert theirs.got == ["before", text, "after"]

    with_two_ends(scenario)


def test_messages_keep_their_order_when_the_other_end_is_slow() -> None:
    """Send more than the socket takes at once: small and large messages, with and without descriptors."""

    async def scenario(ours: End, theirs: End) -> None:
        expected: list[Any] = []
        for number in range(400):
            expected.append((number, bytes(number * 37 % 9001)))
            if number % 50 == 0:
                descriptor = os.memfd_create("test")
                ours.channel.send(expected[-1], descriptor)
                os.close(descriptor)
            else:
                ours.channel.send(expected[-1])
        await theirs.until(len(expected))
        assert theirs.got == expected
        assert len(theirs.descriptors) == 8
        for descriptor in theirs.descriptors:
            os.close(descriptor)

    with_two_ends(scenario)


def test_a_descriptor_leads_to_the_same_memory() -> None:
    async def scenario(ours: End, theirs: End) -> None:
        made = os.memfd_create("test")
        os.write(made, b"what is in it")
        ours.channel.send("here", made)
        os.close(made)
        await theirs.until(1)
        (descriptor,) = theirs.descriptors
        assert os.pread(descriptor, 100, 0) == b"what is in it"
        os.close(descriptor)

    with_two_ends(scenario)


def test_closing_is_noticed_once_and_later_messages_are_dropped() -> None:
    async def scenario(ours: End, theirs: End) -> None:
        ours.channel.send("last words")
        await ours.channel.flushed()
        ours.channel.close()
        ours.channel.send("lost")
        async with asyncio.timeout(10):
            while not theirs.closed:
                await asyncio.sleep(0.001)
        theirs.channel.send("lost, too")
        theirs.channel.send_soon("and this")
        await asyncio.sleep(0.05)
        assert theirs.got == ["last words"]
        assert (ours.closed, theirs.closed) == (0, 1)

    with_two_ends(scenario)


def test_threads_may_send() -> None:
    async def scenario(ours: End, theirs: End) -> None:
        await asyncio.gather(*(asyncio.to_thread(ours.channel.send_soon, number) for number in range(50)))
        await theirs.until(50)
        assert sorted(theirs.got) == list(range(50))

    with_two_ends(scenario)
