"""Keys for inference and for administration: read from files, compared in constant time, never logged.

Wrong keys are answered later and later, by network, so that keys cannot be guessed.
"""

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
from yolo_assigner.serve.http.routes import Access, route_of
from yolo_assigner.serve.settings import Settings

SHORTEST_KEY = 16  # characters; shorter ones can be guessed
NAMED = re.compile(r"(?P<name>[\w.@-]{1,64}):(?P<secret>|\s.*)", re.ASCII)
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


class Key(NamedTuple):
    """One key.

    Attributes:
        secret: What callers send.
        name: What the log shows in its place.
    """

    secret: bytes
    name: str


class KeySource(NamedTuple):
    """A file of keys, and keys from elsewhere.

    Attributes:
        path: A file with a key a line, ``KEY`` or ``NAME: KEY``; empty lines and those that begin with ``#`` are
            skipped. None: no file.
        others: Keys from elsewhere, without names.
    """

    path: Path | None = None
    others: tuple[str, ...] = ()

    def load(self) -> tuple[Key, ...]:
        """Read the keys. One without a name is named by its place, as ``keys.txt:3`` or ``environment:1``.

        Raises:
            ValueError: The file cannot be read, has no key or gives two keys one name, or a key is short or not plain
                ASCII. No key is shown.
        """
        others = [_key(secret, f"environment:{number}") for number, secret in enumerate(self.others, 1)]
        return tuple(others if self.path is None else others + _read(self.path))


NO_KEYS = KeySource()


class Keys:
    """The accepted keys. There may be several, so that one can be replaced while both are in use.

    Args:
        inference: Keys for everything but administration.
        administration: Keys for administration; without any, those for inference are accepted there.

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
        """Read the key files again. Requests that were accepted go on. May be called in any thread.

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
            ForbiddenError: Its key is not accepted for this path.
        """
        route = route_of(path)
        access = route.access if route else Access.INFERENCE
        administers = access is Access.ADMINISTRATION
        inference, administration = self._keys
        accepted = (administration if administers else ()) or inference
        if not accepted or access is Access.OPEN:
            return None
        given = _given(headers)
        if given is None:
            raise UnauthorizedError("this server wants a key; send it as the header 'Authorization: Bearer KEY'")
        equal = [key for key in accepted if hmac.compare_digest(given, key.secret)]  # compares all, for equal times
        if not equal:
            raise ForbiddenError(f"the key is not good for {'administration' if administers else 'inference'}")
        return equal[0]


def keys_of(settings: Settings) -> Keys:
    """The keys of the settings.

    Raises:
        ValueError: As :meth:`KeySource.load`.
    """
    secrets = (tuple(key.get_secret_value() for key in keys) for keys in (settings.api_keys, settings.admin_keys))
    files = (settings.api_key_file, settings.admin_key_file)
    return Keys(*(KeySource(file, others) for file, others in zip(files, secrets, strict=True)))


class KeyGuard:
    """Refuses requests without an accepted key, by their heads alone, and repeated attempts after a delay.

    The name of an accepted key is left in the scope's state, as ``key_name``.

    Args:
        app: The application behind it.
        keys: The accepted keys.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys
        self._delay = RefusalDelay()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
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
    """Delays refusals by how many their network has had. Used in the event loop's thread only.

    Args:
        clock: Returns seconds.

    Attributes:
        refused: Refusals by network, the oldest first.
        accepted: Networks and keys that were accepted, the oldest first.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.refused: OrderedDict[str, _Refused] = OrderedDict()
        self.accepted: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._waiting = 0

    def let_in(self, network: str, key: bytes) -> None:
        """Note an accepted key.

        Args:
            network: Where it comes from, as of :func:`network_of`.
            key: The key.

        Raises:
            TooManyAttemptsError: It was not accepted from there before, and many wrong ones were tried there. Were it
                accepted, guessing would succeed in spite of the limit.
        """
        if network in self.refused and (network, key) not in self.accepted:
            self._check_guesses(self.refused[network])
        _remember(self.accepted, (network, key), None)

    async def wait(self, network: str, key: bytes | None) -> None:
        """Wait before a refusal is sent.

        Args:
            network: Where it goes, as of :func:`network_of`.
            key: The wrong key; None: none was sent.

        Raises:
            TooManyAttemptsError: Many other wrong keys were tried there, or too many refusals wait already.
        """
        refused = self.refused.get(network) or _Refused()
        _remember(self.refused, network, refused)
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
        """Count a refusal, and return its delay in seconds: none, a quarter, a half and so on up to the longest."""
        now = self._clock()
        count = max(0.0, refused.count - (now - refused.last) / SECONDS_TO_FORGET)
        refused.count, refused.last = min(count + 1, MOST_COUNTED), now
        return min(FIRST_SECONDS * 2 ** (count - 1), LONGEST_SECONDS) if count else 0.0


def network_of(scope: Scope) -> str:
    """The addresses that one caller controls: an address of IPv4, or the first half of one of IPv6."""
    host: str = (scope.get("client") or ("-", 0))[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host  # of a Unix socket, or any text that a proxy passes on
    if isinstance(address, ipaddress.IPv4Address):
        return host
    # A listener for both families sees IPv4 as ::ffff:192.0.2.1.
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))


def _remember(table: OrderedDict[Name, Value], name: Name, value: Value) -> None:
    """Keep an entry, and drop the oldest one when there are too many."""
    table[name] = value
    table.move_to_end(name)
    if len(table) > MOST_REMEMBERED:
        table.popitem(last=False)
