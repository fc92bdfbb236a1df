"""What a container runs.

    serve [WORDS of `python -m serve`]                      the default
    build-engines [WORDS of `python -m export tensorrt`]    an engine of every model, for the GPU that is there
    health                                                  exit code 0 when the service in this container is ready
    anything else                                           run as it is

Where a volume is mounted at the folder of engines, `serve` builds those that are missing or not for this machine before
it starts. Nothing is fetched for that. The variable ENGINE_OPTIONS holds words for `python -m export tensorrt`.
"""

from __future__ import annotations

import http.client
import os
import shlex
import signal
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.engines import INTERRUPTED, UNUSABLE, build_engines, first_start, say

PYTHON = (sys.executable, "-P", "-m")
READY_SECONDS = 4


def main(words: Sequence[str]) -> int:
    """Run a command; comes back only from those that are no program of their own.

    Args:
        words: The command and what it gets; options alone are those of ``serve``.

    Returns:
        Exit code.
    """
    command, *rest = words if words and not words[0].startswith("-") else ("serve", *words)
    if command == "health":
        return health(int(os.environ["YOLO_ASSIGNER_PORT"]), encrypted="YOLO_ASSIGNER_SSL_CERTFILE" in os.environ)
    # The first process of a container ignores the signals that it does not handle. An exception would not do:
    # TensorRT drops those that come while it writes to its log. Files are only ever written whole.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    artifacts = Path(os.environ["YOLO_ASSIGNER_ARTIFACTS"])
    options = shlex.split(os.environ.get("ENGINE_OPTIONS", ""))
    if command == "build-engines":
        return build_engines(artifacts, [*options, *rest])
    if command == "serve":
        if first_start(artifacts, options) == INTERRUPTED:
            return INTERRUPTED
        os.execv(PYTHON[0], [*PYTHON, "serve", *rest])  # noqa: S606 - signals must reach the service itself
    try:
        os.execvp(command, [command, *rest])  # noqa: S606
    except OSError as error:
        say(f"{command} cannot be run ({error.strerror}); choose serve, build-engines or a program of the image")
        return UNUSABLE


def health(port: int, *, encrypted: bool = False) -> int:
    """0 when the service on this port of the container is ready, else 1."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_SECONDS)
    if encrypted:
        # The certificate is made out to the name that callers use, and nobody stands between a container and itself.
        unchecked = ssl._create_unverified_context()  # noqa: S323
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=READY_SECONDS, context=unchecked)
    try:
        connection.request("GET", "/v2/health/ready")
        return 0 if connection.getresponse().status == http.HTTPStatus.OK else 1
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
