"""Requests as bytes, and how they are sent: on a blocking connection, or on asyncio's streams."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import NamedTuple

from tests.serve.hostile.wire import Wire
from yolo_assigner.serve.wire.dtypes import Array

PIECE = 2**18  # bytes that are handed to a stream at once
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Payload(NamedTuple):
    """A request that is ready to be sent.

    Attributes:
        head: Request line and headers.
        body: Parts of the body, in their order.
        shared: Inputs that lie in shared memory, by name.
    """

    head: bytes
    body: tuple[bytes | memoryview, ...]
    shared: Mapping[str, Array] = {}

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return sum(map(len, self.body))


class Answer(NamedTuple):
    """A reply and its time.

    Attributes:
        status: Status code.
        body: The whole body.
        began: When the request was begun, by the monotonic clock that all processes share.
        seconds: Time from then to the reply's headers.
        closes: Whether the server closes the connection.
    """

    status: int
    body: bytes
    began: float
    seconds: float
    closes: bool


def infer_head(model: str, length: int, more: str = "") -> bytes:
    """Request line and headers of an infer request.

    Args:
        model: Name of the model.
        length: Value of ``Content-Length``.
        more: Further header lines, each with its line end.
    """
    return _head(f"models/{model}/infer", length, more)


def json_payload(path: str, document: object, more: str = "") -> Payload:
    """A POST request of a JSON document.

    Args:
        path: Path below ``/v2/``.
        document: The document.
        more: Further header lines, each with its line end.
    """
    text = json.dumps(document).encode()
    return Payload(_head(path, len(text), more), (text,))


def _head(path: str, length: int, more: str) -> bytes:
    return f"POST /v2/{path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n{more}\r\n".encode()


def connected(port: int) -> Wire:
    """A blocking connection that waits long enough for any reply."""
    return Wire(port, timeout=120.0)


def send(wire: Wire, payload: Payload) -> bytes:
    """Send a request and return the body of its reply.

    Raises:
        RuntimeError: The status is not 200.
        NoReplyError: No whole reply came.
    """
    wire.write((payload.head, *payload.body))
    reply = wire.reply()
    if reply.status != 200:
        raise RuntimeError(f"status {reply.status}: {reply.body.decode()}")
    return reply.body


def register(wire: Wire, region: str, key: str, nbytes: int) -> None:
    """Register an object of shared memory, named as ``shm_open`` takes it, as a region."""
    send(wire, json_payload(f"systemsharedmemory/region/{region}/register", {"key": key, "byte_size": nbytes}))


async def exchange(streams: Streams, payload: Payload) -> Answer:
    """Send a request and read its reply; the server may reply before it has read all.

    Raises:
        OSError: The connection broke.
        asyncio.IncompleteReadError: The server closed the connection before the end of the reply.
    """
    reader, writer = streams
    began = time.perf_counter()
    sending = asyncio.create_task(_send(writer, payload)) if payload.size > PIECE else None
    if sending is None:
        writer.writelines((payload.head, *payload.body))
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        seconds = time.perf_counter() - began
        body = await reader.readexactly(int(head.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0]))
        if sending is not None:
            await sending
    finally:
        if sending is not None:
            sending.cancel()
    return Answer(int(head[9:12]), body, began, seconds, b"connection: close" in head)


async def _send(writer: asyncio.StreamWriter, payload: Payload) -> None:
    writer.write(payload.head)
    for part in payload.body:
        view = memoryview(part)
        for start in range(0, len(view), PIECE):
            writer.write(view[start : start + PIECE])
            await writer.drain()
