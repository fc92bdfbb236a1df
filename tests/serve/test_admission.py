"""Places for requests: counted by number and bytes, given back whatever happens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from yolo_assigner.serve.errors import BusyError
from yolo_assigner.serve.http.admission import Admission, AdmissionGate


def test_by_number() -> None:
    admission = Admission(2, 100)
    admission.enter(1)
    admission.enter(1)
    with pytest.raises(BusyError, match="2 requests are under way"):
        admission.enter(1)
    admission.leave(1)
    admission.enter(1)


def test_by_bytes() -> None:
    admission = Admission(9, 100)
    admission.enter(60)
    with pytest.raises(BusyError, match="have 60 bytes, this one has 41, and 100 are allowed"):
        admission.enter(41)
    admission.enter(40)
    admission.leave(60)
    admission.leave(40)
    assert (admission.requests, admission.bytes) == (0, 0)


def test_one_that_is_too_large_is_let_in_alone() -> None:
    # It is within the limit of one body; refused for ever it could never be served.
    admission = Admission(9, 100)
    admission.enter(150)
    with pytest.raises(BusyError):
        admission.enter(1)


class Calls:
    """Sends requests into a gate, whose application waits until it is told to go on."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.go_on = asyncio.Event()
        self.gate = AdmissionGate(self.app, admission, unknown_size=50)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        """Behind the gate."""
        await self.go_on.wait()
        if scope["path"] == "/v1/reduce":
            raise RuntimeError("no reply")
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def call(self, path: str, length: int | None = 10) -> list[Any]:
        """What a caller is sent."""
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        headers = [] if length is None else [(b"content-length", str(length).encode())]
        await self.gate({"type": "http", "path": path, "headers": headers, "method": "POST"}, receive, send)
        return sent


def test_a_full_server_answers_at_once() -> None:
    async def scenario() -> None:
        calls = Calls(Admission(1, 1000))
        waiting = asyncio.create_task(calls.call("/v2/models/loss/infer"))
        await asyncio.sleep(0)
        start, body = await calls.call("/v2/models/loss/versions/1/infer")
        assert start["status"] == 503
        assert (b"retry-after", b"1") in start["headers"]
        assert b"1 requests are under way" in body["body"]
        calls.go_on.set()
        assert (await waiting)[0]["status"] == 200
        # Health and metadata take no place.
        assert (await calls.call("/v2/health/ready"))[0]["status"] == 200
        assert calls.admission.requests == 0

    asyncio.run(scenario())


def test_a_body_of_unknown_length_counts_as_the_largest() -> None:
    async def scenario() -> None:
        calls = Calls(Admission(9, 70))
        tasks = [asyncio.create_task(calls.call("/v1/loss", length)) for length in (None, 20)]
        await asyncio.sleep(0)
        assert calls.admission.bytes == 70
        assert (await calls.call("/v1/loss", 1))[0]["status"] == 503
        calls.go_on.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_a_failure_gives_its_place_back() -> None:
    async def scenario() -> None:
        calls = Calls(Admission(1, 1000))
        calls.go_on.set()
        for _ in range(3):
            with pytest.raises(RuntimeError, match="no reply"):
                await calls.call("/v1/reduce")
        task = asyncio.create_task(Calls(calls.admission).call("/v1/loss"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (calls.admission.requests, calls.admission.bytes) == (0, 0)

    asyncio.run(scenario())


def test_a_draining_server_lets_nobody_in_and_closes_connections() -> None:
    async def scenario() -> None:
        calls = Calls(Admission(9, 1000))
        under_way = asyncio.create_task(calls.call("/v1/loss"))
        await asyncio.sleep(0)
        calls.admission.closing = calls.admission.draining = True
        calls.go_on.set()
        assert (b"connection", b"close") in (await under_way)[0]["headers"]
        refused = await calls.call("/v1/loss")
        assert refused[0]["status"] == 503
        assert (b"connection", b"close") in refused[0]["headers"]
        assert b"about to stop" in refused[1]["body"]

    asyncio.run(scenario())
