"""Bytes that HTTP libraries never send: contradicting lengths, wrong chunks, floods, other protocols, hang-ups."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from tests.serve.hostile.requests import Request, good
from tests.serve.hostile.wire import NoReplyError, Piece, Reply, Wire

HALF_CLOSE, HANG_UP = "half close", "hang up"


class Attack(NamedTuple):
    """Bytes to send on one connection, and the replies that must come.

    Attributes:
        name: Key in ``ATTACKS``.
        pieces: Bytes and pauses, in their order.
        request: The well-formed request in it; an answer to it must be right.
        good: Number of results that must come first.
        refused: Number of refusals that must follow.
        silent: Whether the server may also close without a reply.
        end: ``HALF_CLOSE`` or ``HANG_UP`` after the last piece, or empty.
    """

    name: str
    pieces: list[Piece]
    request: Request
    good: int = 0
    refused: int = 1
    silent: bool = False
    end: str = ""


def chunked(body: bytes, size: int) -> bytes:
    """Encode a body in chunks of a size."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])


def attack(rng: random.Random) -> Attack:
    """Draw an attack."""
    name = rng.choice(sorted(ATTACKS))
    return ATTACKS[name](name, good(rng).request(), rng)


def _without_length(request: Request, *lines: str) -> bytes:
    own = "".join(f"{name}: {value}\r\n" for name, value in request.headers)
    extra = "".join(f"{line}\r\n" for line in lines)
    return f"POST {request.path} HTTP/1.1\r\nHost: localhost\r\n{own}{extra}\r\n".encode()


def _smuggled(name: str, request: Request, rng: random.Random) -> Attack:
    length = len(request.body)
    lines = (
        (f"Content-Length: {length}", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", f"Content-Length: {length}"),
        (f"Content-Length: {length}", f"Content-Length: {length + 1}"),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: xchunked", f"Content-Length: {length}"),
        (f"Content-Length: {length}, {length + 1}",),
        (rng.choice(("Content-Length: -5", "Content-Length: +5", "Content-Length: 0x5", f"Content-Length: {2**64}")),),
        (f"Content-Length: {2**64 - 1}",),
        (f"Content-Length : {length}",),
        (f"Content-Length:\r\n {length}",),
    )
    return Attack(name, [_without_length(request, *rng.choice(lines)), request.body], request)


def _short(name: str, request: Request, rng: random.Random) -> Attack:
    """Claim too short a body: the server must refuse the rest of it as a request."""
    length = rng.randrange(1, len(request.body))
    return Attack(name, [request.head(length) + request.body], request)


def _long(name: str, request: Request, rng: random.Random) -> Attack:
    more = rng.choice((1, 100, 2**20))
    return Attack(name, [request.head(len(request.body) + more) + request.body], request, silent=True, end=HALF_CLOSE)


def _well_chunked(name: str, request: Request, rng: random.Random) -> Attack:
    head = _without_length(request, "Transfer-Encoding: chunked")
    body = chunked(request.body, rng.choice((97, 5000, len(request.body))))
    cut = rng.randrange(len(body))
    return Attack(name, [head, body[:cut], 0.01, body[cut:]], request, good=1, refused=0)


def _badly_chunked(name: str, request: Request, rng: random.Random) -> Attack:
    head, body = _without_length(request, "Transfer-Encoding: chunked"), request.body
    size = len(body)
    bad: bytes = rng.choice(
        (
            b"%x\r\n%s\r\n0\r\n\r\n" % (size - 1, body),
            b"%x\r\n%s" % (size + 1, body) + b"\r\n0\r\n\r\n\r\n",
            b"zz\r\n" + body,
            b"f" * 17 + b"\r\n" + body,
            b"-1\r\n" + body,
            b"%x;" % size + b"x" * 70_000,
            b"%x\r\n%s\r\n0\r\n" % (size, body) + b"x: y\r\n" * 300 + b"\r\n",
            b"%x\r\n%s\r\n0\r\nx: " % (size, body) + b"y" * 200_000,
        )
    )
    return Attack(name, [head, bad[:1000], 0.01, bad[1000:]], request, silent=len(bad) > 60_000)


def _unfinished(name: str, request: Request, rng: random.Random) -> Attack:
    head = _without_length(request, "Transfer-Encoding: chunked")
    body = chunked(request.body, 5000)
    return Attack(name, [head + body[: rng.randrange(len(body) - 1)]], request, silent=True, end=HALF_CLOSE)


def _flood(name: str, request: Request, rng: random.Random) -> Attack:
    floods = (
        [request.head(extra="x: y\r\n" * 300), request.body],
        [request.head()[:-2], b"x: ", *[b"y" * 20_000] * 10],
        [b"GET /", *[b"y" * 20_000] * 10],
        [b"POST ", *[b"y: z\r\n" * 2000] * 10],
    )
    return Attack(name, list(rng.choice(floods)), request, silent=True)


def _foreign(name: str, request: Request, rng: random.Random) -> Attack:
    get, end = b"GET ", b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    paths = b"http://[", b"/\xff", b"/%00%0d%0a%ff", b"/v2/models/%2e%2e/%00", b"/v2/" + b"a/" * 2000, b"*", b"", b"/ x"
    foreign = (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200) + b"\r\n\r\n",  # TLS
        b"GET /v9\r\n\r\n",
        b"\0" * 100,
        rng.randbytes(300) + b"\r\n\r\n",
        b"\r\n" * 9 + b"x\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"CONNECT h:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"BREW / HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v9 HTTP/1.1\r\nHost: [\r\n\r\n",
        b"GET /v9 HTTP/1.1\r\nHost: localhost\r\nx\0y: z\r\n\r\n",
        *(get + path + end for path in paths),
    )
    return Attack(name, [rng.choice(foreign)], request)


def _upgrade(name: str, request: Request, rng: random.Random) -> Attack:
    """Ask for an upgrade, as ``curl --http2`` does; the parser then stops reading HTTP, so the body never arrives."""
    to = rng.choice(("h2c", "websocket", "x"))
    head = request.head(extra=f"Connection: Upgrade\r\nUpgrade: {to}\r\n")
    return Attack(name, [head, *([0.01] * rng.randrange(2)), request.body], request)


def _pipelined(name: str, request: Request, rng: random.Random) -> Attack:
    count, bad = rng.randint(2, 4), rng.random() < 0.5
    pieces: list[Piece] = [(request.head() + request.body) * count + b"garbage\r\n\r\n" * bad]
    return Attack(name, pieces, request, good=count, refused=0)


def _half_closed(name: str, request: Request, _: random.Random) -> Attack:
    return Attack(name, [request.head() + request.body], request, refused=0, good=1, silent=True, end=HALF_CLOSE)


def _gone(name: str, request: Request, rng: random.Random) -> Attack:
    whole = request.head() + request.body
    return Attack(name, [whole[: rng.randrange(len(whole) + 1)]], request, end=HANG_UP)


def _expecting(name: str, request: Request, _: random.Random) -> Attack:
    return Attack(
        name, [request.head(extra="Expect: 100-continue\r\n"), 0.01, request.body], request, good=1, refused=0
    )


def _too_much(name: str, request: Request, rng: random.Random) -> Attack:
    head = request.head(rng.choice((2**26, 2**40, 2**53)))
    half = rng.random() < 0.5
    return Attack(name, [head, request.body], request, silent=half, end=HALF_CLOSE if half else "")


ATTACKS: dict[str, Callable[[str, Request, random.Random], Attack]] = {
    "two lengths": _smuggled,
    "length too small": _short,
    "length too large": _long,
    "chunks": _well_chunked,
    "bad chunks": _badly_chunked,
    "chunks without end": _unfinished,
    "flood beside the body": _flood,
    "no HTTP/1.1": _foreign,
    "upgrade": _upgrade,
    "pipelined": _pipelined,
    "half closed": _half_closed,
    "hung up": _gone,
    "100-continue": _expecting,
    "length over the limit": _too_much,
}


def carry_out(port: int, what: Attack, fault: Callable[[Request, Reply], str | None]) -> tuple[list[int], str | None]:
    """Carry out an attack on a connection of its own.

    Args:
        port: Port of the server.
        what: The attack.
        fault: Tells what is wrong with a reply, or None.

    Returns:
        The statuses of the replies, and what is wrong with them or None.
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
            good = place < what.good
            if good != (reply.status == 200):
                expected = "200" if good else "a refusal"
                return statuses, f"status {reply.status} in place of {expected}: {reply.body[:200]!r}"
            if (wrong := fault(what.request, reply)) is not None:
                return statuses, wrong
    return statuses, None
