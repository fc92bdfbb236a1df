"""Packed bodies: room is asked for before it is taken, and given back once the size is known."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import numpy as np
import pytest

from yolo_assigner.serve.errors import BadRequestError, BusyError, TooLargeError
from yolo_assigner.serve.http.admission import RESERVATION, Admission, Reservation, resizer
from yolo_assigner.serve.http.body import MAX_MEMBERS, PIECE, STEP, BodyReader, Limit, decompress

LIMIT = Limit("the body", 3 * STEP, "send less")
NOISE = np.random.default_rng(0).bytes(2 * PIECE + 7)  # packs to as many bytes again: several pieces


def decompressed(raw: bytes, encoding: str = "gzip") -> tuple[bytes, list[int]]:
    """What comes out, and what was held for it one after the other."""
    held: list[int] = []
    return asyncio.run(decompress(raw, encoding, LIMIT, held.append)), held


@pytest.mark.parametrize("body", [b"", b"x", NOISE, b" " * STEP, b" " * (STEP + 1), b" " * LIMIT.bytes])
def test_what_was_packed_comes_out(body: bytes) -> None:
    packed = gzip.compress(body)
    for encoding, raw in (("gzip", packed), ("x-gzip", packed), ("deflate", zlib.compress(body, 1))):
        result, held = decompressed(raw, encoding)
        assert result == body
        assert held[-1] == len(body)
        assert max(held) <= min(max(len(raw), len(body) + STEP), LIMIT.bytes)


def test_more_than_the_limit_is_never_held() -> None:
    for size in (LIMIT.bytes + 1, 8 * LIMIT.bytes):
        held: list[int] = []
        with pytest.raises(TooLargeError, match="send less"):
            asyncio.run(decompress(gzip.compress(b" " * size), "gzip", LIMIT, held.append))
        assert max(held) == LIMIT.bytes


@pytest.mark.parametrize("body", [b"some text", NOISE])
def test_whole_streams_and_nothing_else(body: bytes) -> None:
    raw, stream = gzip.compress(body), zlib.compress(body)
    for wrong in (b"", raw[:-1], raw + b"x", raw + bytes(PIECE), b"\0" + raw, raw + raw[:-1], raw + raw + b"\0"):
        with pytest.raises(BadRequestError, match="gzip"):
            decompressed(wrong)
    for wrong in (b"", stream[:-1], stream + b"x", stream + stream):
        with pytest.raises(BadRequestError, match="deflate"):
            decompressed(wrong, "deflate")


@pytest.mark.parametrize(
    "bodies", [[b"a", b""], [b"", b"", b"b"], [NOISE, b"x", NOISE], [b" " * STEP, b"y"], [b"z"] * 9999]
)
def test_members_of_gzip_follow_each_other(bodies: list[bytes]) -> None:
    """As ``cat a.gz b.gz`` makes them (RFC 1952, section 2.2)."""
    result, held = decompressed(b"".join(map(gzip.compress, bodies)))
    assert result == b"".join(bodies)
    assert held[-1] == len(result)


def test_members_are_bounded_together_and_in_number() -> None:
    half = gzip.compress(b" " * (LIMIT.bytes // 2))
    assert len(decompressed(half + half)[0]) == LIMIT.bytes
    with pytest.raises(TooLargeError, match="send less"):
        decompressed(half + half + gzip.compress(b" "))
    empty = gzip.compress(b"")
    assert decompressed(empty * MAX_MEMBERS)[0] == b""
    with pytest.raises(BadRequestError, match=f"more than {MAX_MEMBERS} members; pack it as one"):
        decompressed(empty * (MAX_MEMBERS + 1))


def test_a_bomb_is_told_that_there_is_no_room() -> None:
    """Its headers say little. What it may take besides the others is a step more than there is room for."""
    admission = Admission(9, 2 * STEP)
    admission.enter(STEP)
    bomb = gzip.compress(b" " * LIMIT.bytes)
    held = Reservation(admission, len(bomb))
    with pytest.raises(BusyError, match=f"this one unpacks to {2 * STEP} or more"):
        asyncio.run(decompress(bomb, "gzip", LIMIT, held.resize))
    held.release()
    assert (admission.requests, admission.bytes) == (1, STEP)


def test_small_ones_do_not_shut_others_out() -> None:
    admission = Admission(9, STEP + 10_000)
    raw = gzip.compress(b" " * 5000)
    for _ in range(2):
        held = Reservation(admission, len(raw))
        asyncio.run(decompress(raw, "gzip", LIMIT, resizer({RESERVATION: held})))
    assert (admission.requests, admission.bytes) == (2, 10_000)
    resizer({})(7)  # outside a gate nothing is counted


def test_a_body_of_unknown_length_holds_what_it_has_once_it_is_there() -> None:
    admission = Admission(9, 1000)
    held = Reservation(admission, 900)
    messages = iter([(b"abc", True), (b"de", False)])

    async def receive() -> dict[str, Any]:
        body, more = next(messages)
        assert admission.bytes == 900
        return {"type": "http.request", "body": body, "more_body": more}

    assert (
        asyncio.run(BodyReader(900).read({"type": "http", "headers": [], RESERVATION: held}, receive)).tobytes()
        == b"abcde"
    )
    assert admission.bytes == 5


def test_one_alone_may_be_larger_than_all_together() -> None:
    admission = Admission(9, 100)
    held = Reservation(admission, 10)
    held.resize(1000)
    assert admission.bytes == 1000
    held.release()
    assert admission.bytes == 0
