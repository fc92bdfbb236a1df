"""Unpacking bodies step by step, so that room for what comes out is asked for before it is taken."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import NamedTuple

from yolo_assigner.serve.errors import BadRequestError, TooLargeError

GZIP = zlib.MAX_WBITS | 16
WINDOW_BITS = {"gzip": GZIP, "x-gzip": GZIP, "deflate": zlib.MAX_WBITS}
# Bytes of a step, in and out.
PIECE, STEP = 2**20, 2**22
FEED = 2**16  # bytes given to zlib at once, which copies what it leaves of them
MAX_MEMBERS = 2**16  # of a gzip body: an empty one is 20 bytes, and as dear to begin as some kilobytes are to unpack


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
        raw: One deflate stream, or the members of a gzip file one after the other.
        encoding: A key of ``WINDOW_BITS``.
        limit: Of what comes out.
        hold: Told how many bytes there will be, before each step and in the end; it may raise.

    Raises:
        TooLargeError: More comes out.
        BadRequestError: The body is not of this encoding from its first byte to its last.
    """
    unpacker = _Unpacker(raw, encoding)
    parts: list[bytes] = []
    size = 0
    while not unpacker.finished:
        room = min(STEP, limit.bytes + 1 - size)
        hold(min(max(len(raw), size + room), limit.bytes))
        parts.append(await asyncio.to_thread(unpacker.step, room))
        size += len(parts[-1])
        limit.check(size, "unpacks to")
    hold(size)
    return await asyncio.to_thread(b"".join, parts)


class _Unpacker:
    """A body and how much of it has been unpacked."""

    def __init__(self, raw: bytes, encoding: str) -> None:
        self._raw, self._encoding = memoryview(raw), encoding
        self._position = self._start = 0  # of what is next, and of the stream that it belongs to
        self._members = 0
        self._begin()

    @property
    def finished(self) -> bool:
        """The body is at its end, and so is the last stream in it."""
        return self._stream.eof and self._position == len(self._raw)

    def step(self, room: int) -> bytes:
        """Unpack what comes next.

        Args:
            room: Most bytes to return.

        Raises:
            BadRequestError: It is not of the encoding, or ends too early.
        """
        parts: list[bytes] = []
        end = self._position + PIECE
        while room and self._position < end and not self.finished:
            if self._stream.eof:
                self._begin()
            parts.append(self._feed(room))
            room -= len(parts[-1])
        return b"".join(parts)

    def _begin(self) -> None:
        """Begin a stream; of gzip there may be several."""
        if self._members and WINDOW_BITS[self._encoding] != GZIP:
            extra = len(self._raw) - self._position
            raise BadRequestError(f"{extra} bytes follow the {self._encoding} body; send one stream and nothing else")
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise BadRequestError(f"the {self._encoding} body has more than {MAX_MEMBERS} members; pack it as one")
        self._stream, self._start = zlib.decompressobj(WINDOW_BITS[self._encoding]), self._position

    def _feed(self, room: int) -> bytes:
        fed = self._raw[self._position : self._position + FEED]
        try:
            part = self._stream.decompress(fed, room)
        except zlib.error as error:
            raise BadRequestError(
                f"the body is not {self._encoding}, as its Content-Encoding says, from byte {self._start} on ({error})"
            ) from error
        left = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
        used = len(fed) - len(left)
        if not (part or used or self._stream.eof):
            raise BadRequestError(f"the {self._encoding} body ends too early; send all of it")
        self._position += used
        return part
