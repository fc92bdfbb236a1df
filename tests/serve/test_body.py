"""Bodies as they arrive: compressed, in pieces, too long, broken off."""

from __future__ import annotations

import gzip
import json
import os
import socket
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.serve.conftest import LIMIT, Live, binary_rows, loss_inputs

INFER = "/v2/models/loss/infer"


def request() -> tuple[bytes, dict[str, str]]:
    """A good request and its headers."""
    rows, blob = binary_rows(loss_inputs(images=1))
    text = json.dumps({"inputs": rows}).encode()
    return text + blob, {"Inference-Header-Content-Length": str(len(text))}


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "GZIP": gzip.compress,
    "x-gzip": gzip.compress,
    " X-GZip ": gzip.compress,
    "identity, gzip": gzip.compress,
    "deflate": zlib.compress,
    "deflate ,identity": zlib.compress,
    "identity": bytes,
    "Identity, IDENTITY": bytes,
    "": bytes,
}


@pytest.mark.parametrize("encoding", PACKERS)
def test_encodings(live: Live, encoding: str) -> None:
    body, headers = request()
    assert live.send("POST", INFER, PACKERS[encoding](body), headers | {"Content-Encoding": encoding}).status == 200


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, deflate", "gzip, x-gzip", "gzip;q=1", "x"])
def test_other_encodings(live: Live, encoding: str) -> None:
    body, headers = request()
    reply = live.send("POST", INFER, body, headers | {"Content-Encoding": encoding})
    assert reply.status == 501
    assert encoding in reply.error


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_damaged_compression(live: Live, encoding: str) -> None:
    body, headers = request()
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    headers["Content-Encoding"] = encoding
    for damaged in (packed[:-1], packed + b"x", packed + bytes(9), b"", body, packed[:40] + b"\0\1" + packed[42:]):
        reply = live.send("POST", INFER, damaged, headers)
        assert reply.status == 400
        assert encoding in reply.error


def test_encodings_in_two_headers(live: Live) -> None:
    body, headers = request()
    lines = {"Content-Length": len(body), **headers, "Content-Encoding": "identity\r\nContent-Encoding: br"}
    with Wire(live) as wire:
        wire.head(INFER, **lines)
        wire.socket.sendall(body)
        status, _, answer = wire.reply()
    assert (status, "'identity, br'" in answer["error"]) == (501, True)


def test_gzip_of_several_members(live: Live) -> None:
    body, headers = request()
    packed = gzip.compress(body[:1000]) + gzip.compress(body[1000:])
    assert live.send("POST", INFER, packed, headers | {"Content-Encoding": "gzip"}).status == 200


def test_what_unpacks_to_more_than_the_limit(live: Live) -> None:
    bomb = gzip.compress(b" " * (64 * LIMIT), 9)
    assert len(bomb) < LIMIT
    reply = live.send("POST", INFER, bomb, {"Content-Encoding": "gzip"})
    assert reply.status == 413
    assert str(LIMIT) in reply.error
    exact = live.send("POST", INFER, gzip.compress(b" " * LIMIT), {"Content-Encoding": "gzip"})
    assert (exact.status, "not JSON" in exact.error) == (400, True)


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])


class Wire:
    """A connection on which anything can be written; used where HTTP libraries are too polite."""

    def __init__(self, live: Live) -> None:
        self.socket = socket.create_connection((live.host, live.port), timeout=120)
        self.reader = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self.socket.close()

    def head(self, path: str, **headers: object) -> None:
        """Write a request up to its body; underscores in names of headers stand for hyphens."""
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode())

    def reply(self) -> tuple[int, dict[str, str], Any]:
        """Read one reply: status, headers, body."""
        status = int(self.reader.readline().split()[1])
        headers = {}
        while line := self.reader.readline().strip().decode():
            name, value = line.split(": ", 1)
            headers[name.lower()] = value
        return status, headers, json.loads(self.reader.read(int(headers["content-length"])))


def test_bodies_without_a_length(live: Live) -> None:
    body, headers = request()
    with Wire(live) as wire:
        for size in (7_919, len(body)):
            wire.head(INFER, Transfer_Encoding="chunked", **headers)
            wire.socket.sendall(chunked(body, size))
            assert wire.reply()[0] == 200
        wire.head(INFER, Transfer_Encoding="chunked")
        wire.socket.sendall(chunked(b" " * (2 * LIMIT), 1 << 20))
        status, _, answer = wire.reply()
        assert (status, list(answer)) == (413, ["error"])


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (INFER, {}, 413),
        ("/v1/loss", {}, 413),
        ("/v2/models/nobody/infer", {}, 404),
        (INFER, {"Content-Encoding": "br"}, 501),
    ],
)
def test_an_early_refusal_comes_before_the_body_and_keeps_the_connection(
    live: Live, path: str, headers: dict[str, str], status: int
) -> None:
    """Closing while the client still sends would show it a broken pipe instead of the reason."""
    length = 8 * LIMIT
    with Wire(live) as wire:
        wire.head(path, Content_Length=length, **headers)
        wire.socket.sendall(b" " * 1000)
        got, answered, answer = wire.reply()
        assert (got, list(answer)) == (status, ["error"])
        assert answered.get("connection") != "close"
        wire.socket.sendall(b" " * (length - 1000))
        body, good = request()
        wire.head(INFER, Content_Length=len(body), **good)
        wire.socket.sendall(body)
        assert wire.reply()[0] == 200


@pytest.mark.parametrize(
    ("version", "lines", "status", "words"),
    [
        ("1.1", [], 400, "the request has 0 Host headers; send one"),
        ("1.1", ["Host: a", "Host: a"], 400, "the request has 2 Host headers; send one"),
        ("1.0", ["Host: a", "host: b"], 400, "the request has 2 Host headers"),
        ("1.1", ["Host: a", "Transfer-Encoding: gzip, chunked"], 501, "Transfer-Encoding 'gzip, chunked' is not"),
        ("1.1", ["Host: a", "Transfer-Encoding: gzip", "Transfer-Encoding: chunked"], 501, "'gzip, chunked' is not"),
        ("1.1", ["Host: a", "Transfer-Encoding: gzip"], 501, "send chunked alone, or a Content-Length"),
        ("1.1", ["Host: a", "Transfer-Encoding: identity"], 501, "'identity' is not understood"),
    ],
)
def test_heads_that_are_refused(live: Live, version: str, lines: list[str], status: int, words: str) -> None:
    with Wire(live) as wire:
        wire.socket.sendall("\r\n".join([f"POST {INFER} HTTP/{version}", *lines, "", ""]).encode())
        got, headers, answer = wire.reply()
        assert (got, headers["connection"]) == (status, "close")
        assert words in answer["error"]
        assert wire.reader.read() == b""


@pytest.mark.parametrize(
    ("version", "lines"), [("1.0", []), ("1.1", ["Host:"]), ("1.1", ["Host: localhost", "Transfer-Encoding: Chunked"])]
)
def test_heads_that_are_served(live: Live, version: str, lines: list[str]) -> None:
    with Wire(live) as wire:
        body = "0\r\n\r\n" if len(lines) == 2 else ""
        wire.socket.sendall("\r\n".join([f"GET /v2/health/live HTTP/{version}", *lines, "", body]).encode())
        assert wire.reply()[0] == 200


def test_a_refused_head_comes_after_the_replies_to_those_before(live: Live) -> None:
    with Wire(live) as wire:
        wire.socket.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v2 HTTP/1.1\r\n\r\n")
        status, headers, _ = wire.reply()
        assert (status, headers["connection"]) == (200, "close")
        assert wire.reader.read() == b""


def test_expect_continue_is_refused_without_the_body(live: Live) -> None:
    with Wire(live) as wire:
        wire.head(INFER, Content_Length=8 * LIMIT, Expect="100-continue")
        assert wire.reply()[0] == 413


def test_byte_by_byte_and_two_at_once(live: Live) -> None:
    body, headers = request()
    with Wire(live) as wire:
        wire.head(INFER, Content_Length=len(body), **headers)
        for start in range(0, len(body), 1000):
            wire.socket.sendall(body[start : start + 1000])
        assert wire.reply()[0] == 200
        for _ in range(2):  # the second is on its way before the first is answered
            wire.head(INFER, Content_Length=len(body), **headers)
            wire.socket.sendall(body)
        assert [wire.reply()[0] for _ in range(2)] == [200, 200]


def test_callers_who_hang_up(live: Live) -> None:
    body, headers = request()
    for sent in (0, 1, len(body) // 2, len(body)):
        with Wire(live) as wire:
            wire.head(INFER, Content_Length=len(body), **headers)
            wire.socket.sendall(body[:sent])
    assert live.send("POST", INFER, body, headers).status == 200


def test_any_alignment_of_the_tensors(live: Live) -> None:
    """The JSON in front has any length, so the tensors start anywhere."""
    rows, blob = binary_rows(loss_inputs(images=1))
    answers = set()
    for padding in range(9):
        reply = live.infer("loss", {"id": "x" * padding, "inputs": rows}, blob)
        answers.add(json.dumps(reply.json["outputs"]))
    assert len(answers) == 1


def test_no_content_type_and_a_wrong_one(live: Live) -> None:
    body, headers = request()
    for kind in ({}, {"Content-Type": "text/html"}, {"Content-Type": "application/octet-stream"}):
        assert live.send("POST", INFER, body, headers | kind).status == 200


def test_noise(live: Live) -> None:
    for _ in range(20):
        assert live.send("POST", INFER, os.urandom(2000), {"Inference-Header-Content-Length": "100"}).status == 400
