"""Reading a request's body from the raw ASGI stream: bounded, decompressed, and aligned for the tensors in it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from yolo_assigner.serve.errors import BadRequestError, ClientDisconnectedError, TooLargeError, UnsupportedError
from yolo_assigner.serve.http.admission import resizer
from yolo_assigner.serve.http.headers import header_number
from yolo_assigner.serve.http.limits import DataRate, minimum_data_rate
from yolo_assigner.serve.wire.buffers import BufferPool

ALIGNMENT = 64  # bytes: a cache line, and enough for any vector instruction
REMEDY = "send fewer images, FP16, or raise --max-request-bytes"
JSON_REMEDY = (
    "send tensors as binary, with the JSON's number of bytes as the header Inference-Header-Content-Length, or raise "
    "--max-json-bytes"
)
GZIP = zlib.MAX_WBITS | 16
WINDOW_BITS = {"gzip": GZIP, "x-gzip": GZIP, "deflate": zlib.MAX_WBITS}
PIECE, STEP = 2**20, 2**22  # most bytes that one step of decompression reads and returns
FEED = 2**16  # bytes given to zlib at once, which copies those that it does not use
MAX_MEMBERS = 2**16  # of a gzip body: an empty one has 20 bytes, and costs as much to begin as kilobytes to decompress


class Limit(NamedTuple):
    """Most bytes of something, and what a caller can do about it."""

    what: str
    bytes: int
    remedy: str

    def check(self, size: int, having: str) -> None:
        """Compare a size with the limit.

        Raises:
            TooLargeError: It is over the limit.
        """
        if size > self.bytes:
            raise TooLargeError(f"{self.what} {having} {size} bytes, the limit is {self.bytes}; {self.remedy}")


class BodyReader:
    """Reads bodies.

    Args:
        limit: Most bytes of a body, before and after decompression.
        json_limit: Most bytes of JSON in it; ``limit`` when None.
        client_timeout: Seconds that a caller may send nothing; None: no limit.
        remedy: What a caller can do about a body that is too large.
        pool: Memory for bodies; its own when None.
    """

    def __init__(
        self,
        limit: int,
        json_limit: int | None = None,
        client_timeout: float | None = None,
        remedy: str = REMEDY,
        pool: BufferPool | None = None,
    ) -> None:
        self._limit = limit
        self._json_limit = limit if json_limit is None else json_limit
        self._client_timeout = client_timeout
        self._remedy = remedy
        self._pool = BufferPool(limit + ALIGNMENT) if pool is None else pool

    async def read(self, scope: Scope, receive: Receive, json_length: int | None = None) -> memoryview:
        """Read a whole body. What its headers say is checked before the first byte is read.

        Args:
            scope: ASGI scope.
            receive: ASGI receive.
            json_length: Bytes of JSON before the first tensor; None when all of it is JSON. The body is placed so that
                the first tensor is aligned.

        Raises:
            TooLargeError: It is over the limit.
            TooSlowError: It came too slowly.
            BusyError: Decompressed it would exceed the limit of all requests together.
            UnsupportedError: Its encoding is not implemented.
            BadRequestError: It is not what its headers say.
            ClientDisconnectedError: The caller disconnected before its end.
        """
        headers = Headers(scope=scope)
        encoding = _encoding(headers)
        limit = self._limit_of(json_length)
        length = header_number(headers, "content-length")
        if length is not None:
            limit.check(length, "has")
        if encoding is None and length is not None:
            async with minimum_data_rate(self._client_timeout) as rate:
                return await _read_into(self._aligned(length, json_length or 0), receive, rate)
        async with minimum_data_rate(self._client_timeout) as rate:
            raw = await _collect(receive, limit, rate)
        if encoding is None:
            resizer(scope)(len(raw))  # a body of unknown length has the largest reservation
        else:
            raw = await decompress(raw, encoding, limit, resizer(scope))
        body = self._aligned(len(raw), json_length or 0)
        await asyncio.to_thread(_copy, raw, body)
        return body

    def _limit_of(self, json_length: int | None) -> Limit:
        """The limit of the whole body. The part that is JSON is checked at once."""
        as_json = Limit("the JSON", self._json_limit, JSON_REMEDY)
        if json_length is None:
            if self._json_limit < self._limit:
                return as_json
        elif json_length <= self._limit:  # a longer one is wrong, which the parser reports
            as_json.check(json_length, "has")
        return Limit("the body", self._limit, self._remedy)

    def _aligned(self, length: int, json_length: int) -> memoryview:
        """Uninitialized memory in which byte ``json_length`` is aligned."""
        buffer = self._pool.take(length + ALIGNMENT)
        start = -(buffer.ctypes.data + json_length) % ALIGNMENT
        return buffer[start : start + length].data


def _encoding(headers: Headers) -> str | None:
    """The body's content encoding, a key of ``WINDOW_BITS``; None when it has none.

    Raises:
        UnsupportedError: It has another one, or more than one.
    """
    said = ", ".join(headers.getlist("content-encoding")).lower()
    encodings = [part.strip() for part in said.split(",") if part.strip() not in ("", "identity")]
    if not encodings:
        return None
    if len(encodings) > 1 or encodings[0] not in WINDOW_BITS:
        raise UnsupportedError(f"Content-Encoding {said!r} is not understood; send gzip, deflate or none")
    return encodings[0]


async def _next(receive: Receive, rate: DataRate) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnectedError
    rate.add(len(message.get("body", b"")))
    return message


async def _read_into(body: memoryview, receive: Receive, rate: DataRate) -> memoryview:
    """Fill memory that still has another request's bytes: all of it, or raise."""
    filled, more = 0, True
    while more:
        message = await _next(receive, rate)
        part = message.get("body", b"")
        end = filled + len(part)
        if end <= len(body):
            body[filled:end] = part
        filled = end
        more = message.get("more_body", False)
    if filled != len(body):
        raise BadRequestError(f"the body has {filled} bytes, but its Content-Length is {len(body)}")
    return body


async def _collect(receive: Receive, limit: Limit, rate: DataRate) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await _next(receive, rate)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        limit.check(size, "already has")
        more = message.get("more_body", False)
    return await asyncio.to_thread(b"".join, parts)


def _copy(raw: bytes, body: memoryview) -> None:
    """Copy in numpy, which releases the interpreter: the event loop must not wait for many megabytes."""
    np.copyto(np.frombuffer(body, np.uint8), np.frombuffer(raw, np.uint8))


async def decompress(raw: bytes, encoding: str, limit: Limit, reserve: Callable[[int], None]) -> bytes:
    """Decompress a body, in threads.

    Args:
        raw: One deflate stream, or the members of a gzip file one after the other.
        encoding: A key of ``WINDOW_BITS``.
        limit: Most bytes of the result.
        reserve: Called with the bytes of the result, the most they can be before each step and their number at the
            end; it may raise.

    Raises:
        TooLargeError: The result is over the limit.
        BadRequestError: The body is not of this encoding from its first byte to its last.
    """
    decompressor = _Decompressor(raw, encoding)
    parts: list[bytes] = []
    size = 0
    while not decompressor.finished:
        room = min(STEP, limit.bytes + 1 - size)
        reserve(min(max(len(raw), size + room), limit.bytes))
        parts.append(await asyncio.to_thread(decompressor.step, room))
        size += len(parts[-1])
        limit.check(size, "unpacks to")
    reserve(size)
    return await asyncio.to_thread(b"".join, parts)


class _Decompressor:
    """A body and its position in it."""

    def __init__(self, raw: bytes, encoding: str) -> None:
        self._raw, self._encoding = memoryview(raw), encoding
        self._position = self._start = 0  # of the next byte, and of the stream that it belongs to
        self._members = 0
        self._begin()

    @property
    def finished(self) -> bool:
        """Whether the body is at its end, and so is the last stream in it."""
        return self._stream.eof and self._position == len(self._raw)

    def step(self, room: int) -> bytes:
        """Decompress the next part.

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
        """Begin a stream. A gzip body may have several, a deflate body has one."""
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
