"""Slow callers hold neither places nor connections for long, and a log that is not read does not stop the server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.exports import exported
from tests.serve.conftest import Live
from tests.serve.hostile.conftest import PATIENCE, PLACES
from tests.serve.hostile.judge import Judge
from tests.serve.hostile.requests import good_requests, large_reply
from tests.serve.hostile.slow_callers import (
    Slow,
    dripping_bodies,
    sent_ahead,
    sent_ahead_unread,
    slow_bodies,
    slow_heads,
    slow_readers,
)
from tests.serve.hostile.surroundings import SHORT, Short, short_memory, unread_log
from tests.serve.hostile.wire import Wire

GOOD = good_requests()[0]


def fine(slow: Slow) -> None:
    assert slow.fault is None, slow


def test_bodies_that_stop(strict: Live) -> None:
    fine(slow_bodies(strict.port, GOOD, PLACES, PATIENCE))


def test_bodies_that_drip(strict: Live) -> None:
    fine(dripping_bodies(strict.port, GOOD, PLACES, PATIENCE))


def test_heads_that_stop(strict: Live) -> None:
    fine(slow_heads(strict.port, GOOD, 20, PATIENCE))


def test_requests_that_are_sent_ahead(strict: Live) -> None:
    fine(sent_ahead(strict.port, 2, 2000))
    fine(sent_ahead_unread(strict.port, 2, PATIENCE))


def test_a_log_that_is_not_read() -> None:
    fine(unread_log(exported("loss", "sparse"), 700))


@pytest.mark.parametrize("short", SHORT, ids=lambda short: short.what)
def test_memory_that_is_short(artifacts_dir: Path, judge: Judge, group: Path, short: Short) -> None:
    fine(short_memory(artifacts_dir, judge, group, short, callers=4))


def test_replies_that_are_not_read(strict: Live) -> None:
    fine(slow_readers(strict.port, large_reply(), 2, PATIENCE))


def test_the_rest_of_a_refused_body_that_does_not_come(strict: Live) -> None:
    with Wire(strict.port) as wire:
        wire.write([GOOD.head(2**40), b"x" * 1000, 0.1, b"x"])
        assert wire.reply().status == 413
        began = time.monotonic()
        assert wire.ended()
        assert time.monotonic() - began < PATIENCE + 1


def test_a_body_that_is_slow_but_comes(strict: Live) -> None:
    """The body takes longer than the longest allowed pause; each of its pauses is shorter."""
    whole = GOOD.head() + GOOD.body
    size = -(-len(whole) // 10)
    pieces = [part for start in range(0, len(whole), size) for part in (whole[start : start + size], PATIENCE / 6)]
    with Wire(strict.port) as wire:
        wire.write(pieces)
        assert wire.reply().status == 200


def test_an_idle_connection_stays_open(strict: Live) -> None:
    with Wire(strict.port) as wire:
        for pause in (2.5 * PATIENCE, 0.0):
            wire.write([GOOD.head() + GOOD.body])
            assert wire.reply().status == 200
            time.sleep(pause)


def test_a_head_that_stops_behind_a_good_request(strict: Live) -> None:
    with Wire(strict.port) as wire:
        wire.write([GOOD.head() + GOOD.body + GOOD.head()[:10]])
        assert [wire.reply().status, wire.reply().status] == [200, 408]


def test_what_breaks_off_behind_whole_requests_does_not_take_their_replies(strict: Live) -> None:
    """They are still being computed when the broken one arrives, and are answered before the connection closes."""
    whole = GOOD.head() + GOOD.body
    broken = b"POST /v2/models/loss/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    for count in (1, 2, 3):
        with Wire(strict.port) as wire:
            wire.write([whole * count + broken])
            assert [wire.reply().status for _ in range(count + 1)] == [200] * count + [400]
            assert wire.ended()
