"""Early refusals on connections that are then closed: the caller, who still sends, must see the reason."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from tests.serve.conftest import LIMIT, Live, binary_rows, loss_inputs
from yolo_assigner.serve.http.admission import Admission, AdmissionGate
from yolo_assigner.serve.http.disconnect import Linger

INFER = "/v2/models/loss/infer"
SIZE = 4 * LIMIT  # more than the buffers between the two ends


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1\r\nhost: localhost\r\nconnection: close",
        "HTTP/1.1\r\nhost: localhost\r\nconnection: TE, Close",
        "HTTP/1.0\r\nhost: localhost",
    ],
)
def test_the_reason_comes_through(live: Live, head: str) -> None:
    with socket.create_connection((live.host, live.port), timeout=120) as connection:
        connection.sendall(f"POST {INFER} {head}\r\ncontent-length: {SIZE}\r\n\r\n".encode())
        connection.sendall(bytes(SIZE))
        reply = b"".join(iter(lambda: connection.recv(2**16), b""))  # up to the end of the connection
    assert reply.startswith(b"HTTP/1.1 413"), reply[:200]
    assert reply.endswith(b'--max-request-bytes"}')
    rows, blob = binary_rows(loss_inputs())
    assert live.infer("loss", {"inputs": rows}, blob, Connection="close").status == 200


class Request:
    """A body in so many parts, to an application behind ``Linger``; an event for each part and message, in order."""

    def __init__(self, parts: int, http: str = "1.1", **headers: str) -> None:
        self.parts, self.log = parts, list[str]()
        names = {"content_length": "9", **headers}
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in names.items()]
        self.scope = {"type": "http", "http_version": http, "method": "POST", "path": INFER, "headers": raw}

    async def receive(self) -> Any:
        """The next part; a caller that has no more waits."""
        if not self.parts:
            await asyncio.sleep(60)
        self.parts -= 1
        self.log.append("part")
        return {"type": "http.request", "body": b"x", "more_body": self.parts > 0}

    async def send(self, message: Any) -> None:
        """Note what is sent: the status, a part of the body, or its end."""
        begins = message["type"] == "http.response.start"
        self.log.append(str(message["status"]) if begins else "body" if message.get("more_body") else "end")

    async def to(self, app: Any) -> list[str]:
        """Send it."""
        await app(self.scope, self.receive, self.send)
        return self.log


async def refuses(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 403, "headers": []})
    await send({"type": "http.response.body", "body": b"no"})


def test_only_a_connection_that_ends_is_held() -> None:
    async def scenario() -> None:
        app = Linger(refuses)
        assert await Request(2, connection="close").to(app) == ["403", "body", "part", "part", "end"]
        assert await Request(2, http="1.0").to(app) == ["403", "body", "part", "part", "end"]
        assert await Request(2).to(app) == ["403", "end"]
        # Nothing more will come: there is no body, or the caller asks before it sends one.
        assert await Request(0, connection="close", content_length="0").to(app) == ["403", "end"]
        assert await Request(2, connection="close", expect="100-continue").to(app) == ["403", "end"]

    asyncio.run(scenario())


def test_a_server_that_stops_gives_its_reason_and_holds_no_place() -> None:
    async def scenario() -> None:
        admission = Admission(9, 1000)
        admission.closing = admission.draining = True
        log = await Request(3).to(Linger(AdmissionGate(refuses, admission, unknown_size=50)))
        assert log == ["503", "body", "part", "part", "part", "end"]
        admission.draining = False
        request = Request(3)
        task = asyncio.create_task(request.to(Linger(AdmissionGate(refuses, admission, unknown_size=50), 0.2)))
        request.parts = 0  # the rest does not come
        await asyncio.sleep(0.05)
        assert request.log == ["403", "body"]
        assert admission.requests == 0
        assert await task == ["403", "body", "end"]

    asyncio.run(scenario())
