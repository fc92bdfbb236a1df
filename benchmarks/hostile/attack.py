"""One connection on which something wrong is written, and what has to come back on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.hostile.requests import Request
from benchmarks.hostile.wire import NoReplyError, Piece, Reply, Wire

HALF_CLOSE, HANG_UP = "half close", "hang up"


class Attack(NamedTuple):
    """What is written on one connection, and what has to come back.

    Attributes:
        name: What it is.
        pieces: Written one after the other.
        request: The good request in it, whose answer has to be right where one comes.
        good: How many replies must be good ones, before the others.
        refused: How many must be refusals after those.
        silent: The server may also close without a word.
        end: What the caller does then, besides waiting for replies.
    """

    name: str
    pieces: list[Piece]
    request: Request
    good: int = 0
    refused: int = 1
    silent: bool = False
    end: str = ""


def carry_out(port: int, what: Attack, fault: Callable[[Request, Reply], str | None]) -> tuple[list[int], str | None]:
    """Do it.

    Args:
        port: Of the server.
        what: To do.
        fault: Judges a reply.

    Returns:
        The statuses that came, and what is wrong with them.
    """
    statuses: list[int] = []
    with Wire(port) as wire:
        wire.write(what.pieces)
        if what.end == HANG_UP:
            return statuses, None
        if what.end == HALF_CLOSE:
            wire.half_close()
        for place in range(what.good + what.refused):
            try:
                reply = wire.reply()
            except NoReplyError as error:
                return statuses, None if what.silent else str(error)
            statuses.append(reply.status)
            wanted = place < what.good
            if wanted != (reply.status == 200):
                return (
                    statuses,
                    f"status {reply.status} in place of {'200' if wanted else 'a refusal'}: {reply.body[:200]!r}",
                )
            if (wrong := fault(what.request, reply)) is not None:
                return statuses, wrong
    return statuses, None
