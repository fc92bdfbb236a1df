"""Unpacking bodies step by step, so that room for what comes out is asked for before it is taken."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import NamedTuple

from serve.errors import BadRequestError, TooLargeError

WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
# Bytes of a step, in and out: what is left of the input is copied at every step.
PIECE, STEP = 2**20, 2**22


class Limit(NamedTuple):
    """Most bytes of something, and what to do about it."""

    what: str
    bytes: int
    remedy: str

    def check(self, size: int, having: str) -> None:
        """Judge a size.

        Raises:
            TooLargeError: It is over the limit.
        """
        if size > self.bytes:
            raise TooLargeError(f"{self.what} {having} {size} bytes, the limit is {self.bytes}; {self.remedy}")


async def unpack(raw: bytes, encoding: str, limit: Limit, hold: Callable[[int], None]) -> bytes:
    """Unpack a body, in threads.

    Args:
        raw: One stream.
        encoding: A key of ``WINDOW_BITS``.
        limit: Of what comes out.
        hold: Told how many bytes there will be, before each step and in the end; it may raise.

    Raises:
        TooLargeError: More comes out.
        BadRequestError: It is no stream of this encoding, or not one alone.
    """
    unpacker = zlib.decompressobj(WINDOW_BITS[encoding])
    parts: list[bytes] = []
    size = end = 0
    while end < len(raw) and not unpacker.eof:
        rest, end, stuck = raw[end : end + PIECE], end + PIECE, True
        while stuck:
            room = min(STEP, limit.bytes + 1 - size)
            hold(min(max(len(raw), size + room), limit.bytes))
            parts.append(await asyncio.to_thread(_step, unpacker, rest, room, encoding))
            size += len(parts[-1])
            limit.check(size, "unpacks to")
            rest = unpacker.unconsumed_tail
            stuck = not unpacker.eof and (bool(rest) or len(parts[-1]) == room)
    if not unpacker.eof or unpacker.unused_data or end < len(raw):
        raise BadRequestError(
            f"the {encoding} body is incomplete, or other bytes follow it; send one {encoding} stream"
        )
    hold(size)
    return await asyncio.to_thread(b"".join, parts)


def _step(unpacker: zlib._Decompress, piece: bytes, room: int, encoding: str) -> bytes:
    try:
        return unpacker.decompress(piece, room)
    except zlib.error as error:
        raise BadRequestError(f"the body is not {encoding}, as its Content-Encoding says ({error})") from error
