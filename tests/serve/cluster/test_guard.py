"""What stands before Ray's proxy, in front of applications that answer as that proxy does. No Ray is needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yolo_assigner.serve.cluster.guard import ProxyGuard, middlewares
from yolo_assigner.serve.http.auth import Keys, KeySource
from yolo_assigner.serve.settings import Settings

INFER = "/v2/models/loss/infer"
KEY = "a-key-of-some-length"
MOST = 100


class Answer(NamedTuple):
    """What a caller was sent."""

    messages: list[Any]

    @property
    def status(self) -> int:
        """Status code."""
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names in lower case, and values."""
        return [(name.decode().lower(), value.decode()) for name, value in self.messages[0]["headers"]]

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def error(self) -> str:
        """Text of an error in the service's form."""
        assert list(json.loads(self.body)) == ["error"]
        assert ("content-type", "application/json") in self.headers
        return str(json.loads(self.body)["error"])


def answering(status: int, text: bytes, kind: bytes) -> ASGIApp:
    """A proxy that reads the body and answers."""

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        headers = [(b"content-type", kind), (b"x-request-id", b"one"), (b"x-request-id", b"two")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text[:3], "more_body": True})
        await send({"type": "http.response.body", "body": text[3:]})

    return app


def guarded(app: ASGIApp, keys: Keys | None = None, **limits: Any) -> ProxyGuard:
    """A guard before a proxy, for bodies of up to 100 bytes."""
    settings = Settings(artifacts=Path(), **{"max_request_bytes": MOST, **limits})
    return ProxyGuard(app, settings, keys or Keys())


async def ask(
    guard: ProxyGuard, parts: Sequence[bytes] = (b"{}",), path: str = INFER, headers: Sequence[tuple[str, str]] = ()
) -> Answer:
    """Send a request, with a length unless its body has several parts."""
    waiting = list(parts)
    sent: list[Message] = []

    async def receive() -> Message:
        if not waiting:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: Message) -> None:
        sent.append(message)

    length = [("content-length", str(len(parts[0])))] if len(parts) == 1 else []
    raw = [(name.encode(), value.encode()) for name, value in (*length, *headers)]
    await guard({"type": "http", "method": "POST", "path": path, "headers": raw}, receive, send)
    return Answer(sent)


def test_plain_errors_of_ray_take_the_services_form() -> None:
    guard = guarded(answering(503, b"Request dropped due to backpressure", b"text/plain; charset=utf-8"))
    answer = asyncio.run(ask(guard, headers=[("x-request-id", "mine")]))
    assert answer.status == 503
    assert answer.error == "Ray Serve: Request dropped due to backpressure"
    assert ("retry-after", "1") in answer.headers
    assert [value for name, value in answer.headers if name == "x-request-id"] == ["mine"]


@pytest.mark.parametrize(("status", "kind"), [(400, b"application/json"), (200, b"text/plain")])
def test_other_replies_pass_unchanged(status: int, kind: bytes) -> None:
    answer = asyncio.run(ask(guarded(answering(status, b'{"error": "yours"}', kind))))
    assert (answer.status, answer.body) == (status, b'{"error": "yours"}')
    assert len([name for name, _ in answer.headers if name == "x-request-id"]) == 1


def test_paths_of_ray_are_left_to_it() -> None:
    answer = asyncio.run(ask(guarded(answering(503, b"draining", b"text/plain")), path="/-/healthz"))
    assert (answer.status, answer.body) == (503, b"draining")


def test_a_replica_that_does_not_answer_is_answered_for() -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        """What Ray's proxy does when a replica died."""

    answer = asyncio.run(ask(guarded(silent)))
    assert answer.status == 502
    assert "send the request again" in answer.error


def test_nothing_is_added_to_a_reply_that_was_cut_off() -> None:
    """The HTTP server then closes the connection, which tells the caller."""

    async def cut_off(_: Scope, __: Receive, send: Send) -> None:
        headers = [(b"content-length", b"10")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    assert len(asyncio.run(ask(guarded(cut_off))).messages) == 1


class Proxy:
    """Keeps what it receives until it is told to go on, as Ray's does while replicas are busy."""

    def __init__(self) -> None:
        self.received: list[Message] = []
        self.scopes: list[Scope] = []
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read all, wait, answer."""
        self.scopes.append(scope)
        while True:
            self.received.append(await receive())
            if self.received[-1]["type"] == "http.disconnect":
                return
            if not self.received[-1]["more_body"]:
                break
        await self.go_on.wait()
        await answering(200, b"right", b"text/plain")(scope, receive, send)


def test_large_bodies_are_refused_from_their_length() -> None:
    proxy = Proxy()
    answer = asyncio.run(ask(guarded(proxy), [bytes(MOST + 1)]))
    assert answer.status == 413
    assert "has 101 bytes, the limit is 100" in answer.error
    assert proxy.received == []


def test_bodies_of_unknown_length_end_at_the_limit() -> None:
    proxy = Proxy()
    answer = asyncio.run(ask(guarded(proxy), [bytes(60)] * 1000))
    assert answer.status == 413
    assert "the limit is 100" in answer.error
    assert [message["type"] for message in proxy.received] == ["http.request", "http.disconnect"]


def test_a_full_proxy_refuses_without_reading() -> None:
    async def run() -> tuple[Answer, Answer, Answer]:
        proxy = Proxy()
        guard = guarded(proxy, max_requests=1)
        first = asyncio.create_task(ask(guard))
        while not proxy.received:
            await asyncio.sleep(0)
        second = await ask(guard)
        proxy.go_on.set()
        return await first, second, await ask(guard)

    first, second, third = asyncio.run(run())
    assert (first.status, second.status, third.status) == (200, 503, 200)
    assert "1 requests are under way" in second.error
    assert ("retry-after", "1") in second.headers


def test_keys_are_asked_for_before_anything_is_read() -> None:
    proxy = Proxy()
    proxy.go_on.set()
    guard = guarded(proxy, Keys(KeySource(others=(KEY,))))
    assert asyncio.run(ask(guard)).status == 401
    assert proxy.received == []
    assert asyncio.run(ask(guard, headers=[("authorization", f"Bearer {KEY}")])).status == 200
    assert set(proxy.scopes[0]) == {"type", "method", "path", "headers", "state"}  # Ray pickles it
    assert proxy.scopes[0]["state"] == {"key_name": "environment:1"}


def test_limits_and_keys_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(KEY)
    monkeypatch.setenv("YOLO_ASSIGNER_MAX_REQUEST_BYTES", "7")
    monkeypatch.setenv("YOLO_ASSIGNER_API_KEY_FILE", str(path))
    (middleware,) = middlewares()
    options: Any = middleware.kwargs
    guard = ProxyGuard(answering(200, b"right", b"text/plain"), **options)
    authorized = [("authorization", f"Bearer {KEY}")]
    assert asyncio.run(ask(guard, [bytes(7)])).status == 401
    assert asyncio.run(ask(guard, [bytes(7)], headers=authorized)).status == 200
    assert asyncio.run(ask(guard, [bytes(8)], headers=authorized)).status == 413
    monkeypatch.setenv("YOLO_ASSIGNER_MAX_REQUEST_BYTES", "none")
    with pytest.raises(ValueError, match="YOLO_ASSIGNER_MAX_REQUEST_BYTES"):
        middlewares()
