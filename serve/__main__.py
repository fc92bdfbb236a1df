"""``yolo-assigner serve``: handle signals, then run :mod:`yolo_assigner.serve.cli`."""

import os
import signal
import sys
from collections.abc import Sequence

STOPPING = (signal.SIGTERM, signal.SIGINT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal. Signals are handled from the first moment, before imports that take a second.

    Until the server runs, SIGTERM and SIGINT end the process, which would ignore them as the first process of a
    container. They may be blocked by the parent process until then. SIGHUP stays blocked until the event loop runs.

    Args:
        arguments: As for :func:`yolo_assigner.serve.cli.main`.

    Returns:
        Exit code.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    for sign in STOPPING:
        signal.signal(sign, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    from yolo_assigner.serve.cli import main as serve

    return serve(arguments)


if __name__ == "__main__":
    sys.exit(main())
