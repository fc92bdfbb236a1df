"""``python -m serve``: see :mod:`serve.cli`."""

import os
import signal
import sys

STOPPING = (signal.SIGTERM, signal.SIGINT)


def main() -> int:
    """Serve until told to stop. Signals count from the first moment, before imports that take a second.

    SIGTERM and SIGINT end the process while there is nothing to finish; as the first process of a container it would
    ignore them otherwise. Whoever starts it may block them until they are handled. SIGHUP waits for the event loop.

    Returns:
        Exit code.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    for sign in STOPPING:
        signal.signal(sign, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    from serve.cli import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
