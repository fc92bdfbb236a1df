"""The version that client and server tell each other, and whether the two can work together.

Each sends it in a header, as ``0.1.0; protocol=1``. The protocol's number changes when the same request or reply begins
to mean something else: inputs or outputs of the models, their types, axes or units. Clients and servers of other
projects send no such header, and are accepted.
"""

from __future__ import annotations

import re

from yolo_loss import __version__

PROTOCOL = 1
CLIENT_HEADER, SERVER_HEADER = "X-Yolo-Assigner-Client", "X-Yolo-Assigner-Server"
OURS = f"{__version__}; protocol={PROTOCOL}"
FORM = re.compile(r"(?P<version>[\w.+!-]{1,64}); protocol=(?P<protocol>\d{1,9})", re.ASCII)


def check_peer(header: str, value: str | None, error: type[Exception] = ValueError) -> None:
    """Check that the other side speaks this side's protocol.

    Args:
        header: ``CLIENT_HEADER`` or ``SERVER_HEADER``.
        value: The header's value; None: it was not sent, and anything is accepted.
        error: Raised when the protocols differ, or the value has another form. Its text names both versions.
    """
    if value is None:
        return
    parts = FORM.fullmatch(value)
    if parts is None:
        raise error(f"{header} is {value[:80]!r} and not of the form '{OURS}'; install the same version on both sides")
    if int(parts["protocol"]) != PROTOCOL:
        other, this = ("client", "server") if header == CLIENT_HEADER else ("server", "client")
        raise error(
            f"the {other} is yolo-assigner {parts['version']} with protocol {parts['protocol']}, this {this} is "
            f"yolo-assigner {__version__} with protocol {PROTOCOL}; install the same version on both sides"
        )
