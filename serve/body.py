"""Reading a request's body from the raw ASGI stream: bounded, unpacked, and laid out for the tensors in it."""

from __future__ import annotations

import asyncio
import zlib

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from serve.buffers import BufferPool
from serve.errors import BadRequestError, ClientGoneError, TooLargeError, UnsupportedError

ALIGNMENT = 64  # bytes: a cache line, and enough for any vector instruction
LONGEST_NUMBER = 18  # digits
WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


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


class BodyReader:
    """Takes the bodies of all requests.

    Args:
        limit: Most bytes of a body, before and after decompression. As much memory is kept between requests.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pool = BufferPool(limit + ALIGNMENT)

    async def read(self, scope: Scope, receive: Receive, json_length: int = 0) -> memoryview:
        """Take a whole body, decided by its headers before the first byte is read.

        Args:
            scope: ASGI scope.
            receive: ASGI receive.
            json_length: Bytes before the first tensor. The body is placed so that this tensor is aligned.

        Raises:
            TooLargeError: It is over the limit.
            UnsupportedError: It is encoded in a way that is not understood.
            BadRequestError: It is not what its encoding says.
            ClientGoneError: It broke off.
        """
        headers = Headers(scope=scope)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in (*WINDOW_BITS, "identity"):
            raise UnsupportedError(f"Content-Encoding {encoding!r} is not understood; send gzip, deflate or none")
        length = header_number(headers, "content-length")
        if length is not None and length > self._limit:
            raise _too_large(f"the body has {length} bytes", self._limit)
        if encoding == "identity" and length is not None:
            return await _read_into(self._aligned(length, json_length), receive)
        raw = await _collect(receive, self._limit)
        if encoding != "identity":
            raw = await asyncio.to_thread(_decompress, raw, encoding, self._limit)
        body = self._aligned(len(raw), json_length)
        body[:] = raw
        return body

    def _aligned(self, length: int, json_length: int) -> memoryview:
        """Memory of any content in which byte ``json_length`` is aligned."""
        buffer = self._pool.take(length + ALIGNMENT)
        start = -(buffer.ctypes.data + json_length) % ALIGNMENT
        return buffer[start : start + length].data


def _too_large(what: str, limit: int) -> TooLargeError:
    return TooLargeError(f"{what}, the limit is {limit}; send fewer images, FP16, or raise --max-request-bytes")


async def _next(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message


async def _read_into(body: memoryview, receive: Receive) -> memoryview:
    filled, more = 0, True
    while more:
        message = await _next(receive)
        part = message.get("body", b"")
        body[filled : filled + len(part)] = part
        filled += len(part)
        more = message.get("more_body", False)
    return body


async def _collect(receive: Receive, limit: int) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await _next(receive)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large("the body is longer than allowed", limit)
        more = message.get("more_body", False)
    return b"".join(parts)


def _decompress(raw: bytes, encoding: str, limit: int) -> bytes:
    """Unpack, never holding more than the limit."""
    unpacker = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        body = unpacker.decompress(raw, limit + 1)
    except zlib.error as error:
        raise BadRequestError(f"the body is not {encoding}, as its Content-Encoding says ({error})") from error
    if len(body) > limit:
        raise _too_large("the unpacked body is longer than allowed", limit)
    if not unpacker.eof or unpacker.unused_data:
        raise BadRequestError(
            f"the {encoding} body is incomplete, or other bytes follow it; send one {encoding} stream"
        )
    return body
