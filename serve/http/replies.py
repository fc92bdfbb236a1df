"""JSON replies, replies with tensors, and error replies, which all have one form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from yolo_assigner.serve.errors import ServeError
from yolo_assigner.serve.wire.response import EncodedResponse, dump_json

JSON_LENGTH = "Inference-Header-Content-Length"


class ReplyInParts(Response):
    """A reply whose parts are sent without being copied together.

    Args:
        encoded: The parts, and the length of the JSON among them.
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
    """A JSON reply; NaN and the infinities become ``null``."""
    return Response(dump_json(value), status, headers, media_type="application/json")


def error_reply(error: ServeError, scope: Scope) -> Response:
    """The reply to a refused request. The error's ``reason`` is left in the scope's state, for the metrics."""
    scope.setdefault("state", {})["reason"] = error.reason
    return reply({"error": str(error)}, error.status, error.headers)


async def send_error(error: ServeError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an error from a middleware."""
    await error_reply(error, scope)(scope, receive, send)
