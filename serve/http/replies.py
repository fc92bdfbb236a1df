"""JSON replies and the one form of an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from yolo_assigner.serve.errors import ServeError
from yolo_assigner.serve.wire.response import EncodedResponse, dump_json

JSON_LENGTH = "Inference-Header-Content-Length"


class ReplyInParts(Response):
    """A reply in parts, each sent from where it lies.

    Args:
        encoded: The parts.
    """

    def __init__(self, encoded: EncodedResponse) -> None:
        binary = encoded.header_length is not None
        headers = {"Content-Length": str(sum(len(chunk) for chunk in encoded.chunks))}
        if binary:
            headers[JSON_LENGTH] = str(encoded.header_length)
        media_type = "application/octet-stream" if binary else "application/json"
        super().__init__(headers=headers, media_type=media_type)
        self._chunks = encoded.chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the parts as one body."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last = len(self._chunks) - 1
        for place, chunk in enumerate(self._chunks):
            await send({"type": "http.response.body", "body": chunk, "more_body": place < last})


def reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON reply; numbers that JSON has not become ``null``."""
    return Response(dump_json(value), status, headers, media_type="application/json")


def error_reply(error: ServeError, scope: Scope) -> Response:
    """What the caller is told. What the metrics call the error is left in the scope's state, as ``reason``."""
    scope.setdefault("state", {})["reason"] = error.reason
    return reply({"error": str(error)}, error.status, error.headers)


async def send_error(error: ServeError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error where no framework does."""
    await error_reply(error, scope)(scope, receive, send)
