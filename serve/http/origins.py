"""Protection against web pages that make their user's browser call this server.

A browser sends the requests of a page to anything that its user can reach, such as a server on loopback. Two headers
show that, which scripts cannot change: Origin; and Host, where the page's name was made to resolve to the server's
address (DNS rebinding), so that the browser takes the server for the page's own.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from fastapi import Response
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from yolo_assigner.serve.errors import ForbiddenError, ServeError
from yolo_assigner.serve.http.replies import JSON_LENGTH, reply, send_error
from yolo_assigner.serve.settings import Settings

HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")
SENT = ("Authorization", "Content-Encoding", JSON_LENGTH, "X-Request-Id")  # headers that pages may send
SHOWN = (JSON_LENGTH, "X-Request-Id", "Retry-After")  # headers that pages may read


class Origins(NamedTuple):
    """Hosts and origins that requests may name. Programs send no Origin, and may send no Host.

    Attributes:
        names: The server's names; ``*`` stands for any characters. Addresses are always accepted. None: every name is.
        dotless: Whether names without a dot are accepted, which Docker and Kubernetes give and no public DNS has.
        pages: Origins that may call, besides the server's own.
    """

    names: tuple[str, ...] | None = None
    dotless: bool = False
    pages: tuple[str, ...] = ()

    def allow(self, headers: Headers) -> None:
        """Check the headers of a request.

        Raises:
            ForbiddenError: Its Host is not a name of the server, or it comes from a page that may not call.
        """
        host = headers.get("host", "").lower()
        if host and not self.answers_to(host):
            raise ForbiddenError(
                f"this server does not answer to the name {host!r}; use its address, or start it with "
                "--allowed-host and the name without a port"
            )
        for origin in headers.getlist("origin"):
            # The scheme is not compared: behind a proxy that ends TLS it differs for the server's own pages.
            own = host and origin.lower().partition("://")[2] == host
            if not own and origin not in self.pages:
                raise ForbiddenError(
                    f"web pages of {origin!r} may not call this server; to let them, start it with --cors-origin and "
                    "that origin"
                )

    def answers_to(self, host: str) -> bool:
        """Return whether a ``Host`` header, with or without a port, names this server."""
        if self.names is None:
            return True
        parts = HOST.fullmatch(host)
        if parts is None:
            return False
        name = parts[1].removesuffix(".")
        if any(fnmatchcase(name, pattern) for pattern in self.names) or (self.dotless and "." not in name):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))  # not resolved by DNS, so DNS rebinding is impossible
        except ValueError:
            return False
        return True


def origins_of(settings: Settings, has_keys: bool) -> Origins:
    """The hosts and origins that the settings allow.

    Args:
        settings: ``host``, ``unix_socket``, ``allowed_host`` and ``cors_origin`` are read.
        has_keys: Whether inference needs a key. Pages do not have it, so every name is accepted unless some are given.
    """
    if has_keys and not settings.allowed_host:
        return Origins(pages=settings.cors_origin)
    if settings.unix_socket is not None:
        # Browsers cannot call it, but a proxy may pass their requests on; programs may send any short name.
        return Origins(("localhost", *settings.allowed_host), dotless=True, pages=settings.cors_origin)
    names = ("localhost", settings.host.lower(), *settings.allowed_host)
    if settings.local:
        return Origins(names, pages=settings.cors_origin)
    return Origins((*names, socket.gethostname().lower()), dotless=True, pages=settings.cors_origin)


class OriginGuard:
    """Refuses requests of web pages that may not call.

    Args:
        app: The application behind it.
        origins: Allowed hosts and origins.
    """

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            try:
                self._origins.allow(Headers(scope=scope))
            except ServeError as error:
                await send_error(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


class CrossOrigin(CORSMiddleware):
    """Tells browsers which pages may call, and what these may send and read.

    Args:
        app: The application behind it.
        pages: Origins of the pages.
    """

    def __init__(self, app: ASGIApp, pages: Sequence[str]) -> None:
        # Browsers ask for allow_private_network before a page of a public site calls a private address.
        super().__init__(app, pages, ("GET", "HEAD", "POST"), SENT, expose_headers=SHOWN, allow_private_network=True)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight request; a refusal has the JSON form of all errors."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:  # noqa: PLR2004
            return response
        allowed = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        text = f"{bytes(response.body).decode()}; pages may use GET, HEAD and POST with the headers {', '.join(SENT)}"
        return reply({"error": text}, response.status_code, allowed)
