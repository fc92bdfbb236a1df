"""HTTP exchanges with one server over kept connections, which threads share."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPSConnection, RemoteDisconnected
from pathlib import Path
from typing import NamedTuple

import certifi

MARK = "HTTP/1.1"  # how a reply begins
PIECE = 2**20  # bytes of a reply that are read at once


class CutReplyError(HTTPException):
    """The connection ended before the reply was complete."""


class Reply(NamedTuple):
    """A complete reply.

    Attributes:
        status: HTTP status.
        headers: By their names in lower case. A header that was sent several times is joined by commas.
        body: The body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def reason_of(reply: Reply) -> str | None:
    """The text of an error in the form of the inference protocol; None: it has another form, a proxy's for example."""
    try:
        return str(json.loads(reply.body)["error"])
    except (ValueError, KeyError, TypeError):
        return None


class Outgoing(NamedTuple):
    """A request.

    Attributes:
        verb: ``GET`` or ``POST``.
        path: Path behind the address.
        body: The body; None: none.
        headers: Headers by name.
    """

    verb: str
    path: str
    body: bytes | None
    headers: Mapping[str, str]


class Server:
    """The address of a server with its idle connections.

    Args:
        url: ``host:port``, with or without ``http://``, or ``https://host:port``; a path behind it is a prefix.
        ca_file: PEM file of the authority for TLS; None: the widely trusted ones.

    Raises:
        ValueError: The address is none, or ``ca_file`` cannot be used or was given without TLS.
    """

    def __init__(self, url: str, ca_file: str | Path | None = None) -> None:
        self.url = url.rstrip("/")
        self._context = _tls_context(self.url, ca_file)
        self._host, _, prefix = self.url.removeprefix("http://").removeprefix("https://").partition("/")
        self._prefix = f"/{prefix}" if prefix else ""
        self._idle: list[HTTPConnection] = []
        self._lock = threading.Lock()
        try:
            self._new()
        except HTTPException as error:
            raise ValueError(
                f"the address is {url} ({error}); give host:port, http://host:port or https://..."
            ) from error

    def exchange(self, request: Outgoing, timeout: float, until: float) -> Reply:
        """Send a request and read the whole reply.

        A kept connection that the server closed meanwhile is replaced by another; a new one that fails is not.

        Args:
            request: The request.
            timeout: Seconds to wait for the connection and for each part of the reply.
            until: When to give up, by ``time.monotonic``.

        Raises:
            OSError: No connection, or it failed; ``TimeoutError`` when nothing came in time.
            HTTPException: The reply is not HTTP, or, as ``CutReplyError``, was cut off.
        """
        while True:
            connection, kept = self._take()
            try:
                reply = self._exchange(connection, request, timeout, until)
            except (ConnectionError, CutReplyError):
                connection.close()
                if not kept:
                    raise
            except BaseException:
                connection.close()
                raise
            else:
                if connection.sock is not None:  # it is closed where the server asked for it
                    with self._lock:
                        self._idle.append(connection)
                return reply

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> tuple[HTTPConnection, bool]:
        """A connection, and whether it was used before."""
        with self._lock:
            if self._idle:
                return self._idle.pop(), True
        return self._new(), False

    def _new(self) -> HTTPConnection:
        return HTTPSConnection(self._host, context=self._context) if self._context else HTTPConnection(self._host)

    def _exchange(self, connection: HTTPConnection, request: Outgoing, timeout: float, until: float) -> Reply:
        connection.timeout = _seconds_left(timeout, until)
        if connection.sock is None:
            try:
                connection.connect()
            except TimeoutError as error:
                raise ConnectionError(f"no connection within {connection.timeout:.3g} s") from error
        connection.sock.settimeout(_seconds_left(timeout, until))
        try:
            connection.request(request.verb, self._prefix + request.path, request.body, dict(request.headers))
        except ConnectionError:
            # A server that refuses a large body may have answered and hung up before all of it was sent.
            with suppress(HTTPException, OSError):
                return _read_reply(connection, timeout, until)
            raise
        return _read_reply(connection, timeout, until)


def _read_reply(connection: HTTPConnection, timeout: float, until: float) -> Reply:
    sock = connection.sock
    sock.settimeout(_seconds_left(timeout, until))
    try:
        response = connection.getresponse()
    except BadStatusLine as error:
        if not isinstance(error, RemoteDisconnected) and MARK.startswith(str(error)[: len(MARK)]):
            raise CutReplyError("the reply was cut off in its first line") from error
        raise
    # Without either, the end of the connection is that of the body, and a cut could not be told from it.
    if response.length is None and not response.chunked:
        raise CutReplyError("the reply has neither Content-Length nor chunks; was it cut off?")
    pieces: list[bytes] = []
    while not response.isclosed():
        sock.settimeout(_seconds_left(timeout, until))
        try:
            pieces.append(response.read(PIECE))
        except HTTPException as error:
            raise CutReplyError("the reply was cut off") from error
    if response.length:  # reading with a limit ends silently at the end of the connection
        raise CutReplyError(f"the reply was cut off, {response.length} bytes are missing")
    joined: dict[str, str] = {}
    for name, value in response.getheaders():
        key = name.lower()
        joined[key] = f"{joined[key]}, {value}" if key in joined else value
    return Reply(response.status, joined, b"".join(pieces))


def _seconds_left(timeout: float, until: float) -> float:
    left = min(timeout, until - time.monotonic())
    if left <= 0:
        raise TimeoutError("the deadline is over")
    return left


def _tls_context(url: str, ca_file: str | Path | None) -> ssl.SSLContext | None:
    if not url.startswith("https://"):
        if ca_file is not None:
            raise ValueError(f"ca_file is for TLS, but the address is {url}; write https:// before it")
        return None
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if ca_file is None:
            context.load_verify_locations(certifi.where())  # where the system has no list
        return context
    except OSError as error:
        raise ValueError(f"ca_file {ca_file} cannot be used ({error}); give a PEM file with certificates") from error
