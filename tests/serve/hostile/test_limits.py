"""Requests that are cheap to send and expensive to parse, and bodies that contradict their headers."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import time
from typing import Any

import numpy as np
import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.serve.conftest import Live, assigner_inputs, binary_rows, json_rows, loss_inputs
from tests.serve.hostile.conftest import JSON_LIMIT
from yolo_assigner.serve.errors import BadRequestError, TooLargeError
from yolo_assigner.serve.http.body import BodyReader
from yolo_assigner.serve.http.metrics import Metrics
from yolo_assigner.serve.http.observe import Observer
from yolo_assigner.serve.wire.json import MAX_LISTS, MAX_STRINGS

INFER = "/v2/models/loss/infer"
MIB = 2**20
# JSON whose parsing costs far more than its bytes.
PARTS: dict[str, bytes] = {
    "lists": b"[],",
    "objects": b"{},",
    "nested": b"[[[[1]]]],",
    "strings": b'"ab",',
    "keys": b'{"a":0},',
}


def filled(begin: bytes, part: bytes, end: bytes, size: int) -> bytes:
    return begin + part * (size // len(part)) + end


@pytest.mark.parametrize("part", PARTS)
def test_json_of_very_many_parts(live: Live, part: str) -> None:
    """Read to the end, three megabytes of them take 160 megabytes and a second; as typed JSON 3.7 gigabytes."""
    bodies = {
        INFER: filled(b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[', PARTS[part], b"0]}]}", 3 * MIB),
        "/v1/loss": filled(b'{"feats":[', PARTS[part], b"0]}", 3 * MIB),
    }
    for path, body in bodies.items():
        began = time.monotonic()
        reply = live.send("POST", path, body)
        assert reply.status == 400
        assert time.monotonic() - began < 5
        assert any(f"{most} is the most" in reply.error for most in (MAX_LISTS, MAX_STRINGS))


def test_typed_lists_are_given_up_at_their_first_fault(live: Live) -> None:
    body = filled(b'{"batch":{"batch_idx":[', b"true,", b'0],"cls":[],"bboxes":[]}}', 3 * MIB)
    reply = live.send("POST", "/v1/loss", body)
    assert reply.status == 400
    assert reply.error.startswith("batch.batch_idx.0: Input should be a valid number, not True; the form")


def test_json_over_its_own_limit(strict: Live) -> None:
    rows, blob = binary_rows(loss_inputs(images=1))
    for body in (b" " * (JSON_LIMIT + 1), json.dumps({"x": " " * JSON_LIMIT}).encode()):
        assert "--max-json-bytes" in strict.send("POST", INFER, body).error
        assert "--max-json-bytes" in strict.send("POST", "/v1/loss", body).error
        reply = strict.infer("loss", body, blob)
        assert (reply.status, str(JSON_LIMIT) in reply.error) == (413, True)
    packed = gzip.compress(b" " * (JSON_LIMIT + 1))
    reply = strict.send("POST", INFER, packed, {"Content-Encoding": "gzip"})
    assert (reply.status, "unpacks to" in reply.error) == (413, True)
    large = binary_rows(loss_inputs(images=4, side=128))  # tensors do not count
    assert len(large[1]) > JSON_LIMIT / 4
    assert strict.infer("loss", {"inputs": rows}, blob).status == 200


@pytest.mark.parametrize("images", [2**19, 2**31, 2**40, 2**62])
def test_tensors_without_values_that_say_they_are_long(live: Live, images: int) -> None:
    maps = [{"shape": [images, 67, 0, 0], "dtype": "float16", "base64": ""}] * 3
    typed = live.send("POST", "/v1/loss", {"feats": maps, "batch": {"batch_idx": [], "cls": [], "bboxes": []}})
    rows = json_rows(loss_inputs(images=1, slots=0))
    for row in rows:
        row["shape"][0] = images
        row["data"] = []
    for row in rows[:3]:
        row["shape"][2:] = [0, 0]
    for reply in (typed, live.infer("loss", {"inputs": rows})):
        assert reply.status == 400
        assert "has no values" in reply.error or "is larger than" in reply.error or "less than" in reply.error


def test_points_that_lie_nowhere(live: Live) -> None:
    """Runners would compute an index from them."""
    for value in (np.nan, np.inf, 3e38):
        arrays = assigner_inputs()
        arrays["anc_points"][3, 1] = value
        rows, blob = binary_rows(arrays)
        reply = live.infer("assigner", {"inputs": rows}, blob)
        assert (reply.status, "anc_points[3] is" in reply.error) == (400, True)


def test_paths_make_no_lines_of_their_own_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})

    async def receive() -> Message:
        raise NotImplementedError

    async def send(_: Message) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": "/a\r\nERROR serve: forged\x1b[2J", "headers": []}
    with caplog.at_level(logging.INFO, "serve.access"):
        asyncio.run(Observer(app, Metrics())(scope, receive, send))
    assert caplog.messages[0].startswith("GET /a%0D%0AERROR%20serve:%20forged%1B%5B2J 404 in ")


async def read(reader: BodyReader, length: int, *parts: bytes) -> bytes:
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False

    async def receive() -> Any:
        return messages.pop(0)

    headers = [(b"content-length", str(length).encode())]
    return bytes(await reader.read({"type": "http", "headers": headers}, receive))


def test_no_request_sees_bytes_of_another() -> None:
    """The buffer that a body is read into still holds the bytes of an earlier request."""
    reader = BodyReader(1000)
    assert asyncio.run(read(reader, 12, b"secret", b"secret")) == b"secret" * 2
    for parts in ((b"",), (b"secre",), (b"abc", b"abcdefghijk")):
        with pytest.raises(BadRequestError, match="its Content-Length is 12"):
            asyncio.run(read(reader, 12, *parts))


def test_limits_of_json_and_body_are_told_apart() -> None:
    with pytest.raises(TooLargeError, match=r"the JSON has 101 bytes, the limit is 100.*--max-json-bytes"):
        asyncio.run(read(BodyReader(1000, 100), 101, b""))
    with pytest.raises(TooLargeError, match=r"the body has 1001 bytes, the limit is 1000.*--max-request-bytes"):
        asyncio.run(read(BodyReader(1000), 1001, b""))
