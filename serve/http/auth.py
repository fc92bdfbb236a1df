"""Who may call: keys for inference and for administration, compared in constant time, never logged."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from yolo_assigner.serve.errors import ForbiddenError, ServeError, TooManyAttemptsError, UnauthorizedError
from yolo_assigner.serve.http.replies import send_error

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


FIRST_SECONDS = 0.25  # of the second refusal; the first one, perhaps a typing error, comes at once
LONGEST_SECONDS = 4.0
MOST_COUNTED = 6.0  # refusals; with so many the delay is the longest
SECONDS_TO_FORGET = 10.0  # one refusal
MOST_WRONG = 8  # different keys of one network
WRONG_SECONDS = float(TooManyAttemptsError.headers["Retry-After"])  # in this time
MOST_WAITING = 64  # refusals; each holds a connection, and of a body what came with the head, up to 64 KiB
MOST_REMEMBERED = 4096
Name = TypeVar("Name")
Value = TypeVar("Value")


@dataclass
class _Refused:
    """What one network was refused.

    Attributes:
        count: Refusals, less those that are forgotten.
        last: When the last one was counted.
        wrong: When each wrong key was last tried, by its hash.
    """

    count: float = 0.0
    last: float = 0.0
    wrong: dict[bytes, float] = field(default_factory=dict)


class RefusalDelay:
    """How long refusals wait. Used in the event loop's thread only.

    Args:
        clock: Seconds since any time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: OrderedDict[str, _Refused] = OrderedDict()
        self._accepted: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._waiting = 0

    def let_in(self, network: str, key: bytes) -> None:
        """Accept a good key.

        Args:
            network: Where it comes from, as of :func:`network_of`.
            key: What was sent.

        Raises:
            TooManyAttemptsError: It was not accepted from there before, and many wrong ones were tried there.
        """
        if network in self._refused and (network, key) not in self._accepted:
            self._check_guesses(self._refused[network])
        _remember(self._accepted, (network, key), None)

    async def wait(self, network: str, key: bytes | None) -> None:
        """Wait before a refusal is sent.

        Args:
            network: Where it goes, as of :func:`network_of`.
            key: What was sent; None: nothing.

        Raises:
            TooManyAttemptsError: Many other wrong keys were tried there, or as many refusals wait as may.
        """
        refused = self._refused.get(network) or _Refused()
        _remember(self._refused, network, refused)
        if key is not None:
            digest = hashlib.blake2b(key, digest_size=16).digest()
            if digest not in refused.wrong:
                self._check_guesses(refused)
            refused.wrong[digest] = self._clock()
        if self._waiting >= MOST_WAITING:
            raise TooManyAttemptsError
        self._waiting += 1
        try:
            await asyncio.sleep(self._next_delay(refused))
        finally:
            self._waiting -= 1

    def _check_guesses(self, refused: _Refused) -> None:
        since = self._clock() - WRONG_SECONDS
        refused.wrong = {digest: tried for digest, tried in refused.wrong.items() if tried > since}
        if len(refused.wrong) >= MOST_WRONG:
            raise TooManyAttemptsError

    def _next_delay(self, refused: _Refused) -> float:
        """Count a refusal. Its delay in seconds: none, a quarter, a half and so on up to the longest."""
        now = self._clock()
        count = max(0.0, refused.count - (now - refused.last) / SECONDS_TO_FORGET)
        refused.count, refused.last = min(count + 1, MOST_COUNTED), now
        return min(FIRST_SECONDS * 2 ** (count - 1), LONGEST_SECONDS) if count else 0.0


def network_of(scope: Scope) -> str:
    """What one caller has for itself: an address of IPv4, or the first half of one of IPv6."""
    host: str = (scope.get("client") or ("-", 0))[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host  # a Unix socket, or whatever a proxy says
    if isinstance(address, ipaddress.IPv4Address):
        return host
    # A listener for both families sees IPv4 as ::ffff:192.0.2.1.
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))


def _remember(table: OrderedDict[Name, Value], name: Name, value: Value) -> None:
    """Keep an entry; the one that was kept longest ago makes room."""
    table[name] = value
    table.move_to_end(name)
    if len(table) > MOST_REMEMBERED:
        table.popitem(last=False)
