"""Reading a request's body from the raw ASGI stream: bounded, unpacked, and laid out for the tensors in it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from yolo_assigner.serve.errors import BadRequestError, ClientDisconnectedError, TooLargeError, UnsupportedError
from yolo_assigner.serve.http import admission
from yolo_assigner.serve.http.limits import DataRate, minimum_data_rate
from yolo_assigner.serve.wire.buffers import BufferPool

ALIGNMENT = 64  # bytes: a cache line, and enough for any vector instruction
LONGEST_NUMBER = 18  # digits
REMEDY = "send fewer images, FP16, or raise --max-request-bytes"
JSON_REMEDY = (
    "send tensors as binary, with the JSON's number of bytes as the header Inference-Header-Content-Length, or raise "
    "--max-json-bytes"
)


def header_number(headers: Headers, name: str) -> int | None:
    """A header that counts something; None when it is absent.

    Raises:
        BadRequestError: It is no whole number.
    """
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER):
        raise BadRequestError(f"{name} is {text!r}; write a whole number of bytes")
    return int(text)


def _encoding(headers: Headers) -> str | None:
    """How a body is packed: a key of ``WINDOW_BITS``; None when it is not.

    Raises:
        UnsupportedError: Otherwise, or more than once.
    """
    said = ", ".join(headers.getlist("content-encoding")).lower()
    encodings = [part.strip() for part in said.split(",") if part.strip() not in ("", "identity")]
    if not encodings:
        return None
    if len(encodings) > 1 or encodings[0] not in WINDOW_BITS:
        raise UnsupportedError(f"Content-Encoding {said!r} is not understood; send gzip, deflate or none")
    return encodings[0]


class BodyReader:
    """Takes the bodies of all requests.

    Args:
        limit: Most bytes of a body, before and after decompression.
        json_limit: Most bytes of JSON in it; as of the body when None.
        pause: Seconds that a caller may send nothing; None: for ever.
        remedy: What a caller can do who sent too much.
        pool: Memory for bodies; its own when None.
    """

    def __init__(
        self,
        limit: int,
        json_limit: int | None = None,
        pause: float | None = None,
        remedy: str = REMEDY,
        pool: BufferPool | None = None,
    ) -> None:
        self._limit = limit
        self._json_limit = limit if json_limit is None else json_limit
        self._pause = pause
        self._remedy = remedy
        self._pool = BufferPool(limit + ALIGNMENT) if pool is None else pool

    async def read(self, scope: Scope, receive: Receive, json_length: int | None = None) -> memoryview:
        """Take a whole body, decided by its headers before the first byte is read.

        Args:
            scope: ASGI scope.
            receive: ASGI receive.
            json_length: Bytes of JSON before the first tensor; None when all of it is JSON. The body is placed so that
                the first tensor is aligned.

        Raises:
            TooLargeError: It is over the limit.
            TooSlowError: It did not come.
            BusyError: There is no room for what it unpacks to.
            UnsupportedError: It is encoded in a way that is not understood.
            BadRequestError: It is not what its encoding says.
            ClientDisconnectedError: It broke off.
        """
        headers = Headers(scope=scope)
        encoding = _encoding(headers)
        limit = self._bound(json_length)
        length = header_number(headers, "content-length")
        if length is not None:
            limit.check(length, "has")
        if encoding is None and length is not None:
            async with minimum_data_rate(self._pause) as pace:
                return await _read_into(self._aligned(length, json_length or 0), receive, pace)
        async with minimum_data_rate(self._pause) as pace:
            raw = await _collect(receive, limit, pace)
        if encoding is None:
            admission.holder(scope)(len(raw))  # until now it counted as the largest
        else:
            raw = await decompress(raw, encoding, limit, admission.holder(scope))
        body = self._aligned(len(raw), json_length or 0)
        await asyncio.to_thread(_copy, raw, body)
        return body

    def _bound(self, json_length: int | None) -> Limit:
        """Of the whole body; where some of it is JSON, that is judged right away."""
        as_json = Limit("the JSON", self._json_limit, JSON_REMEDY)
        if json_length is None:
            if self._json_limit < self._limit:
                return as_json
        elif json_length <= self._limit:  # else it is wrong, which its reader says
            as_json.check(json_length, "has")
        return Limit("the body", self._limit, self._remedy)

    def _aligned(self, length: int, json_length: int) -> memoryview:
        """Memory of any content in which byte ``json_length`` is aligned."""
        buffer = self._pool.take(length + ALIGNMENT)
        start = -(buffer.ctypes.data + json_length) % ALIGNMENT
        return buffer[start : start + length].data


async def _next(receive: Receive, pace: DataRate) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnectedError
    pace.came(len(message.get("body", b"")))
    return message


async def _read_into(body: memoryview, receive: Receive, pace: DataRate) -> memoryview:
    """Fill memory that still holds another request's bytes: all of it, or nothing."""
    filled, more = 0, True
    while more:
        message = await _next(receive, pace)
        part = message.get("body", b"")
        end = filled + len(part)
        if end <= len(body):
            body[filled:end] = part
        filled = end
        more = message.get("more_body", False)
    if filled != len(body):
        raise BadRequestError(f"the body has {filled} bytes, but its Content-Length is {len(body)}")
    return body


async def _collect(receive: Receive, limit: Limit, pace: DataRate) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await _next(receive, pace)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        limit.check(size, "already has")
        more = message.get("more_body", False)
    return await asyncio.to_thread(b"".join, parts)


def _copy(raw: bytes, body: memoryview) -> None:
    """In a thread: others are not to wait for many megabytes."""
    np.copyto(np.frombuffer(body, np.uint8), np.frombuffer(raw, np.uint8))  # lets go of the interpreter


GZIP = zlib.MAX_WBITS | 16
WINDOW_BITS = {"gzip": GZIP, "x-gzip": GZIP, "deflate": zlib.MAX_WBITS}
# Bytes of a step, in and out.
PIECE, STEP = 2**20, 2**22
FEED = 2**16  # bytes given to zlib at once, which copies what it leaves of them
MAX_MEMBERS = 2**16  # of a gzip body: an empty one is 20 bytes, and costs as much to begin as kilobytes to decompress


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


async def decompress(raw: bytes, encoding: str, limit: Limit, hold: Callable[[int], None]) -> bytes:
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
