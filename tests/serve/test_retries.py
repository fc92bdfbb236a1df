"""A client that survives: retries, several servers, futures and asyncio, with real servers and a cutting proxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import served
from tests.serve.conftest import Live, assigner_inputs
from tests.serve.relay import answer, relay
from tests.serve.test_thin import assert_equal
from yolo_assigner.serve.client import AssignerClient, AsyncAssignerClient, RetryPolicy, ServerError
from yolo_assigner.serve.client.servers import retry_after
from yolo_assigner.serve.client.transport import Reply
from yolo_assigner.serve.versions import OURS, SERVER_HEADER

SOON = RetryPolicy(first_delay=0.01)
INPUTS = tuple(assigner_inputs().values())
SERVICE = f"{SERVER_HEADER}: {OURS}"
# As HAProxy answers in Ray Serve in place of 502, 503 and 504.
RAYS = answer(500, "Content-Type: text/plain", body="Internal Server Error")


def full(url: Any, **options: Any) -> AssignerClient:
    """A client that sends one request for each assignment."""
    chosen: dict[str, Any] = {"retry": SOON, "thin": False, **options}
    return AssignerClient(url, **chosen)


@pytest.fixture(scope="module")
def expected(live: Live) -> Any:
    """What every client shall get."""
    with full(live.url) as client:
        return client.assign(*INPUTS)


@pytest.mark.parametrize("cut", [0, 5, 10, 60, 400])
def test_a_reply_that_is_cut_off(live: Live, expected: Any, cut: int) -> None:
    """Before it, in its first line, in its headers and in its body."""
    with relay(live, [cut, cut]) as proxy, full(proxy.url) as client:
        assert_equal(client.assign(*INPUTS), expected)
        assert proxy.connections == 3
        assert_equal(client.assign(*INPUTS), expected)
        assert proxy.connections == 3  # it was kept


def test_busy_servers_and_gateways(live: Live, expected: Any) -> None:
    busy = answer(503, "Retry-After: 0", SERVICE, body='{"error": "busy"}')
    script = [answer(502, body="<html>"), busy, answer(503), answer(500), answer(504, body="<html>"), RAYS]
    with relay(live, script) as proxy, full(proxy.url, retry=SOON._replace(tries=7)) as client:
        assert_equal(client.assign(*INPUTS), expected)
        assert proxy.connections == 7


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 501, 503, 504])
def test_refusals_that_are_final(live: Live, status: int) -> None:
    """503 of this project's server is final when it does not say when to come again."""
    refusal = answer(status, SERVICE, body='{"error": "because"}')
    with relay(live, [refusal]) as proxy, full(proxy.url) as client:
        with pytest.raises(ServerError, match="because") as caught:
            client.assign(*INPUTS)
        assert caught.value.status == status
        # After 400 it asks once in which form the model takes its points.
        assert proxy.connections == (2 if status == 400 else 1)


def test_other_inference_servers_get_points_in_the_models_form(live: Live, expected: Any) -> None:
    """They refuse a request that lacks the axis of sets; what the model takes is asked once."""
    refusal = answer(400, body='{"error": "anc_points: expected 3 dimensions, got 2"}')
    with relay(live, [refusal], hidden=SERVER_HEADER.lower().encode()) as proxy, full(proxy.url) as client:
        assert_equal(client.assign(*INPUTS), expected)
        assert proxy.connections == 2
        assert_equal(client.assign(*INPUTS), expected)
        assert proxy.connections == 2


@pytest.mark.parametrize("status", [500, 504])
def test_other_inference_servers_failures_are_final(live: Live, status: int) -> None:
    with relay(live, [answer(status, body='{"error": "because"}')]) as proxy, full(proxy.url) as client:
        with pytest.raises(ServerError, match="because"):
            client.assign(*INPUTS)
        assert proxy.connections == 1


def test_no_more_tries_than_allowed(live: Live) -> None:
    with relay(live, [answer(502, body="<html>")] * 5) as proxy:
        with full(proxy.url, retry=SOON._replace(tries=3)) as client, pytest.raises(ServerError, match="502: <html>"):
            client.assign(*INPUTS)
        assert proxy.connections == 3
        with full(proxy.url, retry=SOON._replace(tries=1)) as client, pytest.raises(ServerError):
            client.assign(*INPUTS)
        assert proxy.connections == 4


def test_the_deadline_is_over_all_tries(live: Live) -> None:
    """A server that asks for more time than is left is not waited for."""
    began = time.monotonic()
    with relay(live, [answer(503, "Retry-After: 100", body='{"error": "busy"}')]) as proxy:
        with (
            full(proxy.url, retry=SOON._replace(deadline=90.0)) as client,
            pytest.raises(ServerError, match="busy") as caught,
        ):
            client.assign(*INPUTS)
        assert caught.value.status == 503
        assert proxy.connections == 1
    assert time.monotonic() - began < 50


def test_a_reply_that_does_not_come(live: Live) -> None:
    """The server may still be computing, so it is not asked again."""
    with relay(live, held=True) as proxy, full(proxy.url, timeout=0.2) as client:
        with pytest.raises(ServerError, match="no reply from"):
            client.assign(*INPUTS)
        assert proxy.connections == 1
    with relay(live, held=True) as proxy, full(proxy.url, retry=SOON._replace(deadline=0.2)) as client:
        with pytest.raises(ServerError, match="no reply from"):
            client.assign(*INPUTS)
        assert proxy.connections == 1


def test_the_pause_grows_with_jitter() -> None:
    policy = RetryPolicy(first_delay=0.1, longest_delay=0.5)
    for tried, longest in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (10_000, 0.5)):
        delays = [policy.delay(tried) for _ in range(50)]
        assert longest / 2 <= min(delays) < max(delays) <= longest


def test_retry_after_is_read_in_both_forms() -> None:
    def asked(value: str) -> float:
        return retry_after(Reply(503, {"retry-after": value}, b""))

    assert asked("7") == 7
    assert 50 < asked(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert asked(formatdate(time.time() - 60, usegmt=True)) == asked("soon") == asked("-1") == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": []}, "give host:port of at least one server"),
        ({"url": "host:port"}, "give host:port"),
        ({"timeout": 0}, "timeout is 0"),
        ({"retry": RetryPolicy(tries=0)}, "tries is 0"),
        ({"retry": RetryPolicy(deadline=float("nan"))}, "deadline is nan"),
        ({"concurrency": 0}, "concurrency is 0"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AssignerClient(**({"url": "127.0.0.1:1"} | options))


@pytest.fixture
def two(assigner_dir: Path) -> Iterator[list[served.Served]]:
    """Two servers of the assigner alone."""
    with ExitStack() as stack:
        servers = [served.start(assigner_dir, "--threads", "1") for _ in range(2)]
        for server in servers:
            stack.callback(server.close)
        for server in servers:
            server.wait_until_ready()
        yield servers


def test_one_of_two_servers_is_killed_and_started_again(
    two: list[served.Served], assigner_dir: Path, expected: Any
) -> None:
    """Every call is answered, and the server that came back is used again."""
    urls = [f"127.0.0.1:{server.port}" for server in two]
    with AssignerClient(urls, retry=RetryPolicy(tries=3, first_delay=0.02, longest_delay=0.2)) as client:
        calls = [client.submit(client.assign, *INPUTS) for _ in range(20)]
        two[0].process.kill()
        calls += [client.submit(client.assign, *INPUTS) for _ in range(20)]
        for call in calls:
            assert_equal(call.result(timeout=120), expected)
        two[0].close()
        again = served.start(assigner_dir, "--threads", "1", port=two[0].port)
        try:
            again.wait_until_ready()
            two[1].process.kill()
            two[1].process.wait()
            for _ in range(5):
                assert_equal(client.assign(*INPUTS), expected)
        finally:
            again.close()


def test_requests_go_to_the_server_with_the_fewest_pending(live: Live, expected: Any) -> None:
    with (
        relay(live, held=True) as one,
        relay(live, held=True) as other,
        full([one.url, other.url], concurrency=6) as client,
    ):
        calls = [client.submit(client.assign, *INPUTS) for _ in range(6)]
        deadline = time.monotonic() + 60
        while one.connections + other.connections < 6:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert (one.connections, other.connections) == (3, 3)
        one.open.set()
        other.open.set()
        for call in calls:
            assert_equal(call.result(timeout=120), expected)


def test_asyncio(live: Live, expected: Any) -> None:
    """The same results, errors and options; a call that has not begun is withdrawn."""

    async def scenario() -> None:
        async with AsyncAssignerClient(live.url, retry=SOON, concurrency=2) as client:
            for targets in await asyncio.gather(*(client.assign(*INPUTS) for _ in range(5))):
                assert_equal(targets, expected)
            with pytest.raises(ServerError, match="no model 'nobody'"):
                await client.infer("nobody", {"x": np.zeros(1, np.float32)}, [])
        with relay(live, held=True) as proxy:
            async with AsyncAssignerClient(proxy.url, thin=False, concurrency=1) as client:
                first, second = (asyncio.ensure_future(client.assign(*INPUTS)) for _ in range(2))
                await asyncio.sleep(0)
                second.cancel()
                proxy.open.set()
                assert_equal(await first, expected)
                with pytest.raises(asyncio.CancelledError):
                    await second
            assert proxy.connections == 1

    asyncio.run(scenario())
