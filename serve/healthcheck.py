"""A health check for containers and supervisors: ``python -m yolo_assigner.serve.healthcheck``.

The exit code says whether the server on this machine is ready. Address, TLS and Unix socket come from the same flags,
environment and file as the server's; no key is needed. The flags are the server's; without any, those of the running
``yolo-assigner serve`` are used. The check loads neither numpy nor the HTTP framework.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

from yolo_assigner.serve.settings import Settings, read_settings

READY = "/v2/health/ready"
SECONDS = 4.0  # less than the image's health check has
COMMANDS = ("yolo-assigner", "yolo_assigner")  # the word before `serve`: of the script, of `python -m`


def main(arguments: Sequence[str]) -> int:
    """Check the server.

    Args:
        arguments: The server's flags; those of the running server when empty.

    Returns:
        0 when it is ready, else 1; standard error then says why.
    """
    try:
        status = ready_status(read_settings(arguments or running_flags(), os.environ).settings)
    except (ValueError, OSError, http.client.HTTPException) as error:
        print(f"healthcheck: {error}", file=sys.stderr)
        return 1
    if status != http.HTTPStatus.OK:
        print(f"healthcheck: {READY} was answered with {status}", file=sys.stderr)
        return 1
    return 0


def running_flags(processes: Path = Path("/proc")) -> list[str]:
    """Flags of the oldest ``yolo-assigner serve`` that is running; empty if there is none.

    Args:
        processes: Folder in which Linux lists processes.
    """
    for number in sorted(int(entry.name) for entry in processes.glob("[0-9]*")):
        with suppress(OSError):  # it has ended meanwhile
            words = (processes / str(number) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            for place, (command, word) in enumerate(pairwise(words)):
                if word == "serve" and Path(command).name in COMMANDS:
                    return words[place + 2 :]
    return []


def ready_status(settings: Settings) -> int:
    """Ask a server whether it is ready.

    Args:
        settings: The server's settings.

    Returns:
        HTTP status of the reply.

    Raises:
        ValueError: The settings do not say on which port it listens.
        OSError: Connecting failed.
        HTTPException: The reply is not HTTP.
    """
    host = reachable(settings.host)
    with closing(http.client.HTTPConnection(host, settings.port)) as connection:
        connection.sock = _connected(settings, host)
        connection.request("GET", READY)
        return connection.getresponse().status


def _connected(settings: Settings, host: str) -> socket.socket:
    if settings.unix_socket is not None:
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(SECONDS)
        plain.connect(str(settings.unix_socket))
    elif settings.port:
        plain = socket.create_connection((host, settings.port), SECONDS)
    else:
        raise ValueError("port is 0, so that the server listens on any; give it one to be checked on")
    if settings.ssl_certfile is None:
        return plain
    # The certificate has the name that callers use, and a connection within one machine cannot be intercepted.
    return ssl._create_unverified_context().wrap_socket(plain)  # noqa: S323


def reachable(host: str) -> str:
    """The address to connect to, on the same machine, for a server that listens on ``host``."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"  # noqa: PLR2004
    return host


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
