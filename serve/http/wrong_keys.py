"""Slows down guessing of keys: refusals to one network come later and later, and it may try few keys in a time.

A delay alone would not do: a right key is answered at once, so whoever guesses need not wait for refusals. While a
network has tried as many wrong keys as it may, others are not looked at, unless they were accepted from there before.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.types import Scope

from yolo_assigner.serve.errors import TooManyAttemptsError

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
