"""Who may call: keys for inference and for administration, compared in constant time, never logged."""

from __future__ import annotations

import hmac
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from yolo_assigner.serve.errors import ForbiddenError, ServeError, UnauthorizedError
from yolo_assigner.serve.http.replies import send_error
from yolo_assigner.serve.http.wrong_keys import RefusalDelay, network_of

SHORTEST_KEY = 16  # characters; shorter ones can be guessed
HEALTH, DOCS = "/v2/health/", "/docs"
ADMINISTRATION = ("/v2/systemsharedmemory", "/v2/cudasharedmemory", "/v2/repository/models", "/v2/trace", "/v2/logging")
NAMED = re.compile(r"(?P<name>[\w.@-]{1,64}):(?P<secret>|\s.*)", re.ASCII)


class Key(NamedTuple):
    """One key.

    Attributes:
        secret: What callers send.
        name: What the log calls it.
    """

    secret: bytes
    name: str


class KeySource(NamedTuple):
    """Where keys of one kind come from.

    Attributes:
        path: A file with a key a line, ``KEY`` or ``NAME: KEY``; empty lines and those that begin with ``#`` are
            skipped. None: no file.
        others: Keys from elsewhere, which have no names.
    """

    path: Path | None = None
    others: tuple[str, ...] = ()

    def load(self) -> tuple[Key, ...]:
        """Read the keys. One without a name is called by its place, as ``keys.txt:3`` or ``environment:1``.

        Raises:
            ValueError: The file cannot be read, has no key or gives two keys one name, or a key is short or not plain
                ASCII. No key is shown.
        """
        others = [_key(secret, f"environment:{number}") for number, secret in enumerate(self.others, 1)]
        return tuple(others if self.path is None else others + _read(self.path))


NO_KEYS = KeySource()


class Keys:
    """The keys that are accepted at present; several, so that one can be replaced while both are in use.

    Args:
        inference: Where those come from that are for everything but administration.
        administration: Where those for administration come from; without any, those for inference are accepted there.

    Raises:
        ValueError: As :meth:`KeySource.load`.
    """

    def __init__(self, inference: KeySource = NO_KEYS, administration: KeySource = NO_KEYS) -> None:
        self._sources = inference, administration
        self._keys = inference.load(), administration.load()

    @property
    def needed(self) -> bool:
        """Whether inference needs a key."""
        return bool(self._keys[0])

    def reload(self) -> None:
        """Read the key files again; requests that were let in are not affected. May be called in any thread.

        Raises:
            ValueError: As :meth:`KeySource.load`; the keys stay as they were.
        """
        inference, administration = (source.load() for source in self._sources)
        self._keys = inference, administration

    def identify(self, path: str, headers: Headers) -> Key | None:
        """Check a request by its path and headers.

        Returns:
            The key that it was sent with; None where none is needed.

        Raises:
            UnauthorizedError: It has no key.
            ForbiddenError: Its key is none of those that are needed here.
        """
        administers = path.startswith(ADMINISTRATION)
        inference, administration = self._keys
        needed = (administration if administers else ()) or inference
        if not needed or path.startswith((HEALTH, f"{DOCS}/")) or path == DOCS:
            return None
        given = _given(headers)
        if given is None:
            raise UnauthorizedError("this server wants a key; send it as the header 'Authorization: Bearer KEY'")
        equal = [key for key in needed if hmac.compare_digest(given, key.secret)]  # all are compared, for equal times
        if not equal:
            raise ForbiddenError(f"the key is not good for {'administration' if administers else 'inference'}")
        return equal[0]


class KeyGuard:
    """Refuses requests without a good key before anything else is done for them, and each repetition later.

    Only the head of a refused request is looked at; what the caller is still sending is dropped by the HTTP server. The
    name of a good key is left in the scope's state, as ``key_name``.

    Args:
        app: What is guarded.
        keys: The good ones.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys
        self._delay = RefusalDelay()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through or answer it."""
        if scope["type"] == "http":
            try:
                await self._check(scope)
            except ServeError as error:
                await send_error(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _check(self, scope: Scope) -> None:
        network = network_of(scope)
        try:
            key = self._keys.identify(scope["path"], Headers(scope=scope))
        except ServeError:
            await self._delay.wait(network, _given(Headers(scope=scope)))
            raise
        if key is not None:
            self._delay.let_in(network, key.secret)
            scope.setdefault("state", {})["key_name"] = key.name


def _read(path: Path) -> list[Key]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"key file {path} cannot be read ({type(error).__name__})") from None
    keys = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            place, named = f"{path.name}:{number}", NAMED.fullmatch(line)
            keys.append(_key(named["secret"].strip(), place, named["name"]) if named else _key(line, place))
    if not keys:
        raise ValueError(f"key file {path} has no key; write one a line, as KEY or NAME: KEY")
    name, count = Counter(key.name for key in keys).most_common(1)[0]
    if count > 1:
        raise ValueError(f"key file {path} has {count} keys of the name {name!r}; give each key its own name")
    return keys


def _key(secret: str, place: str, name: str | None = None) -> Key:
    if len(secret) < SHORTEST_KEY or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise ValueError(
            f"the key at {place} must be {SHORTEST_KEY} or more ASCII characters without spaces, alone or after a name "
            "of letters, digits and '._@-', a colon and a space; make one with `openssl rand -hex 32`"
        )
    return Key(secret.encode(), name or place)


def _given(headers: Headers) -> bytes | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip().encode() if kind.lower() == "bearer" and key.strip() else None
