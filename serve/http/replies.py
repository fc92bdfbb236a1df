"""JSON replies and the one form of an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from serve.errors import ServeError
from serve.tensors.encode import dump_json


def reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON reply; numbers that JSON has not become ``null``."""
    return Response(dump_json(value), status, headers, media_type="application/json")


def error_reply(error: ServeError) -> Response:
    """What the caller is told."""
    return reply({"error": str(error)}, error.status, error.headers)


async def send_error(error: ServeError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error where no framework does."""
    await error_reply(error)(scope, receive, send)
