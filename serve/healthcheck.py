"""Say by an exit code whether the server on this machine is ready: ``python -m yolo_assigner.serve.healthcheck``.

For the health checks of containers and supervisors. The address, TLS and Unix socket are read as the server reads them,
from flags, environment and file; no key is needed. Flags given here are those of the server; without any, those of the
``yolo-assigner serve`` that is running count.
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
        arguments: Its flags; those of the running server when empty.

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
        processes: Where Linux lists processes.
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
        settings: Of the server.

    Returns:
        Status of the reply.

    Raises:
        ValueError: The settings do not say on which port it listens.
        OSError: It cannot be connected to.
        HTTPException: It speaks no HTTP.
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
    # The certificate is made out to the name that callers use, and nobody stands between a machine and itself.
    return ssl._create_unverified_context().wrap_socket(plain)  # noqa: S323


def reachable(host: str) -> str:
    """The address at which a server that listens on another one can be reached from its own machine."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"  # noqa: PLR2004
    return host


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
