"""Which version client and server are, and whether they can work together.

Each says so in a header, ``0.1.0; protocol=1``. The number changes when the same request or reply begins to mean
something else: inputs or outputs of the models, their types, axes or units. Other callers and servers say nothing.
"""

from __future__ import annotations

import re

from yolo_assigner.serve.errors import BadRequestError
from yolo_loss import __version__

PROTOCOL = 1
CLIENT_HEADER, SERVER_HEADER = "X-Yolo-Assigner-Client", "X-Yolo-Assigner-Server"
OURS = f"{__version__}; protocol={PROTOCOL}"
FORM = re.compile(r"(?P<version>[\w.+!-]{1,64}); protocol=(?P<protocol>\d{1,9})", re.ASCII)


def check_client(said: str | None) -> None:
    """Check what a caller says of itself.

    Args:
        said: The header's value; None: it has none.

    Raises:
        BadRequestError: It speaks another protocol than this server.
    """
    fault = _mismatch(CLIENT_HEADER, said)
    if fault is not None:
        raise BadRequestError(fault)


def check_server(said: str | None) -> None:
    """Check what a server says of itself.

    Args:
        said: The header's value; None: it has none.

    Raises:
        ValueError: It speaks another protocol than this client.
    """
    fault = _mismatch(SERVER_HEADER, said)
    if fault is not None:
        raise ValueError(fault)


def _mismatch(header: str, said: str | None) -> str | None:
    """Why the other side cannot be worked with, by its header; None: it can, or says nothing."""
    if said is None:
        return None
    parts = FORM.fullmatch(said)
    if parts is None:
        return f"{header} is {said[:80]!r} and not of the form '{OURS}'; install the same version on both sides"
    if int(parts["protocol"]) == PROTOCOL:
        return None
    other, this = ("client", "server") if header == CLIENT_HEADER else ("server", "client")
    return (
        f"the {other} is yolo-assigner {parts['version']} with protocol {parts['protocol']}, this {this} is "
        f"yolo-assigner {__version__} with protocol {PROTOCOL}; install the same version on both sides"
    )
