"""One or several servers: which of them a request goes to, and when it is sent again.

Sending again is for requests that change nothing, as all of this client's are.
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from yolo_assigner.serve.client.errors import ServerError
from yolo_assigner.serve.client.transport import CutReplyError, Outgoing, Reply, Server, reason_of
from yolo_assigner.serve.versions import SERVER_HEADER
from yolo_loss.option_checks import real_number, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED, BAD_GATEWAY, UNAVAILABLE, GATEWAY_TIMEOUT = 500, 502, 503, 504
OK = 200
HEALTH = Outgoing("GET", "/v2/health/ready", None, {})
HEALTH_SECONDS = 2.0
LARGEST_POWER = 30


class RetryPolicy(NamedTuple):
    """How often and how long a request is tried.

    A request is sent again when there is no connection, when the connection fails or ends within the reply, after 502,
    after 503, where ``Retry-After`` is heeded, and after a 500 or 504 that a proxy wrote: an inference server's own has
    ``{"error": "text"}``. It is not sent again after any other status, after a reply that did not come within the
    client's ``timeout`` (the server may still be computing it), after a failed TLS handshake, or after this server's
    503 without ``Retry-After``: that model cannot be loaded.

    Attributes:
        tries: Most tries of a request, the first included; 1: never again.
        first_delay: Seconds before the second try; it doubles with each try, and up to a half of it is left off at
            random. Where another server is in order, that one is tried at once.
        longest_delay: Most seconds between two tries, unless ``Retry-After`` is longer.
        deadline: Seconds for all tries with the pauses between them.
    """

    tries: int = 4
    first_delay: float = 0.1
    longest_delay: float = 5.0
    deadline: float = 120.0

    def checked(self) -> RetryPolicy:
        """Check the values.

        Raises:
            ValueError: ``tries`` is not positive, or a time is negative or not finite.
        """
        return RetryPolicy(
            whole_number("tries", self.tries),
            real_number("first_delay", self.first_delay),
            real_number("longest_delay", self.longest_delay),
            real_number("deadline", self.deadline, positive=True),
        )

    def delay(self, tried: int) -> float:
        """Seconds to wait after so many tries, with jitter."""
        longest = min(self.longest_delay, self.first_delay * 2.0 ** min(tried - 1, LARGEST_POWER))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


@dataclass(eq=False)
class _Member:
    """A server and what is known of it.

    Attributes:
        server: Its address and connections.
        pending: Requests that wait for its reply.
        failed: Whether its last reply was missing, or one after which the request is sent again.
        rests_until: When it may be chosen again, by ``time.monotonic``.
    """

    server: Server
    pending: int = 0
    failed: bool = False
    rests_until: float = 0.0


class Servers:
    """Servers of the same models, of which a request needs any.

    Each request goes to the server with the fewest replies pending. One that failed gets none for as long as the
    pause between two tries; if there are others, it is then asked for its health first.

    Args:
        urls: Their addresses, as :class:`yolo_assigner.serve.client.transport.Server` takes them.
        ca_file: PEM file of the authority for TLS; None: the widely trusted ones.
        timeout: Seconds to wait for the connection and for each part of a reply.
        retry: How often a request is tried.

    Raises:
        ValueError: There is no address, one cannot be used, or a number is out of range.
    """

    def __init__(self, urls: Sequence[str], ca_file: str | Path | None, timeout: float, retry: RetryPolicy) -> None:
        if not urls:
            raise ValueError("there is no address; give host:port of at least one server")
        self._members = [_Member(Server(url, ca_file)) for url in urls]
        self._timeout = real_number("timeout", timeout, positive=True)
        self._retry = retry.checked()
        self._lock = threading.Lock()

    def send(self, request: Outgoing) -> Reply:
        """Send a request until there is a reply that is worth no further try.

        Returns:
            That reply, of any status; the last one where no try is left.

        Raises:
            ServerError: There was no reply to the last try.
        """
        until = time.monotonic() + self._retry.deadline
        tried = 0
        while True:
            tried += 1
            with self._lent() as member:
                outcome = self._try(member, request, until)
                again = _is_worth_a_retry(outcome)
                delay = max(self._retry.delay(tried), retry_after(outcome)) if again else self._retry.longest_delay
                member.failed = again or not isinstance(outcome, Reply)
                member.rests_until = time.monotonic() + delay if member.failed else 0.0
            if not again or tried >= self._retry.tries or not self._pause(delay, until):
                break
        if isinstance(outcome, Reply):
            return outcome
        raise _no_reply(member.server.url, outcome) from outcome

    def close(self) -> None:
        """Close all idle connections."""
        for member in self._members:
            member.server.close()

    def _try(self, member: _Member, request: Outgoing, until: float) -> Reply | Exception:
        try:
            return member.server.exchange(request, self._timeout, until)
        except (OSError, HTTPException) as error:
            return error

    def _pause(self, delay: float, until: float) -> bool:
        """Wait before the next try, unless another server is in order.

        Returns:
            Whether there is time for another try.
        """
        now = time.monotonic()
        if any(member.rests_until <= now for member in self._members):
            return now < until
        if now + delay >= until:
            return False
        time.sleep(delay)
        return True

    @contextmanager
    def _lent(self) -> Iterator[_Member]:
        """The server for the next try, counted as pending meanwhile."""
        member = self._choose()
        try:
            yield member
        finally:
            with self._lock:
                member.pending -= 1

    def _choose(self) -> _Member:
        while True:
            with self._lock:
                now = time.monotonic()
                awake = [member for member in self._members if member.rests_until <= now]
                if not awake:  # all failed: the one that has rested longest
                    chosen = min(self._members, key=lambda member: member.rests_until)
                    doubtful = False
                else:
                    fewest = min(member.pending for member in awake)
                    chosen = random.choice([m for m in awake if m.pending == fewest])  # noqa: S311 - no secret
                    doubtful = chosen.failed and len(self._members) > 1
                if not doubtful:
                    chosen.pending += 1
                    return chosen
                chosen.rests_until = now + max(self._retry.longest_delay, HEALTH_SECONDS)  # one thread asks
            if self._is_healthy(chosen):
                with self._lock:
                    chosen.failed, chosen.rests_until = False, 0.0

    def _is_healthy(self, member: _Member) -> bool:
        outcome = self._try(member, HEALTH, time.monotonic() + HEALTH_SECONDS)
        return isinstance(outcome, Reply) and outcome.status == OK


def _is_worth_a_retry(outcome: Reply | Exception) -> bool:
    if isinstance(outcome, Reply):
        return _may_change(outcome)
    if isinstance(outcome, ssl.SSLError):
        return isinstance(outcome, ssl.SSLEOFError)
    if isinstance(outcome, TimeoutError):
        return False
    # An OSError is also: no route, or no such name at the moment.
    return isinstance(outcome, CutReplyError | OSError)


def _may_change(reply: Reply) -> bool:
    """Whether the reply to another try may be a different one."""
    ours = SERVER_HEADER.lower() in reply.headers
    if reply.status == UNAVAILABLE:
        return not ours or "retry-after" in reply.headers
    if reply.status in (FAILED, GATEWAY_TIMEOUT):  # an inference server says why; a proxy whose server died cannot
        return not ours and reason_of(reply) is None
    return reply.status == BAD_GATEWAY


def retry_after(outcome: Reply | Exception) -> float:
    """Seconds that a reply asks to wait, 0 where it does not say."""
    value = outcome.headers.get("retry-after", "") if isinstance(outcome, Reply) else ""
    if value.isdecimal():
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return 0.0


def _no_reply(url: str, error: Exception) -> ServerError:
    if isinstance(error, ssl.SSLError):
        return ServerError(
            f"no TLS with {url} ({error}); give ca_file, the authority that signed its certificate, or an http:// "
            "address where it has none"
        )
    return ServerError(
        f"no reply from {url} ({error or type(error).__name__}); is `yolo-assigner serve` running there? With TLS, "
        "write https://"
    )
