"""``yolo-assigner serve``: see :mod:`yolo_assigner.serve.cli`."""

import os
import signal
import sys
from collections.abc import Sequence

STOPPING = (signal.SIGTERM, signal.SIGINT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop. Signals count from the first moment, before imports that take a second.

    SIGTERM and SIGINT end the process while there is nothing to finish; as the first process of a container it would
    ignore them otherwise. Whoever starts it may block them until they are handled. SIGHUP waits for the event loop.

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
