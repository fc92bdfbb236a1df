"""Who may call: keys for inference and for administration, compared in constant time, never logged."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import ForbiddenError, ServeError, UnauthorizedError
from serve.http.replies import send_error

SHORTEST_KEY = 16  # characters; shorter ones can be guessed
OPEN = "/v2/health/"
ADMINISTRATION = ("/v2/systemsharedmemory", "/v2/cudasharedmemory", "/v2/repository/models", "/v2/trace", "/v2/logging")


class Keys(NamedTuple):
    """All keys that are good at present; several, so that one can be replaced while both are in use.

    Attributes:
        inference: For everything but administration.
        administration: For administration; those of inference when empty.
    """

    inference: tuple[bytes, ...] = ()
    administration: tuple[bytes, ...] = ()

    def allow(self, path: str, headers: Headers) -> None:
        """Check a request by its path and headers.

        Raises:
            UnauthorizedError: It has no key.
            ForbiddenError: Its key is none of those that are needed here.
        """
        administers = path.startswith(ADMINISTRATION)
        needed = (self.administration if administers else ()) or self.inference
        if not needed or path.startswith(OPEN):
            return
        given = _given(headers)
        if given is None:
            raise UnauthorizedError("this server wants a key; send it as the header 'Authorization: Bearer KEY'")
        if not _among(given, needed):
            raise ForbiddenError(f"the key is not good for {'administration' if administers else 'inference'}")


class KeyGuard:
    """Refuses requests without a good key before anything else is done for them.

    The reply is sent at once; what the caller is still sending is read and dropped by the HTTP server.

    Args:
        app: What is guarded.
        keys: The good ones.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through or answer it."""
        if scope["type"] == "http":
            try:
                self._keys.allow(scope["path"], Headers(scope=scope))
            except ServeError as error:
                await send_error(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


def load_keys(path: Path | None, others: Iterable[str] = ()) -> tuple[bytes, ...]:
    """Keys from a file and from elsewhere.

    Args:
        path: One key a line; empty lines and those that begin with ``#`` do not count. None: no file.
        others: More keys.

    Raises:
        ValueError: The file cannot be read or has no key, or a key is short or not plain ASCII. No key is shown.
    """
    keys = list(others)
    if path is not None:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise ValueError(f"key file {path} cannot be read ({type(error).__name__})") from None
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ValueError(f"key file {path} has no key; write one a line")
        keys += found
    for number, key in enumerate(keys, 1):
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                f"key {number} of {len(keys)} must be {SHORTEST_KEY} or more ASCII characters without spaces; "
                "make one with `openssl rand -hex 32`"
            )
    return tuple(key.encode() for key in keys)


def _given(headers: Headers) -> bytes | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip().encode() if kind.lower() == "bearer" and key.strip() else None


def _among(given: bytes, keys: Iterable[bytes]) -> bool:
    """All are compared, whichever is equal."""
    equal = [hmac.compare_digest(given, key) for key in keys]
    return any(equal)
