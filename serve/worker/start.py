"""How the engines' process begins, and what its end says."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

# Where this program is not to import from the folder that it is started in, neither is that one.
COMMAND = (sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "serve.worker")
STOPPING = {signal.SIGTERM, signal.SIGINT}


def start(command: Sequence[str], descriptor: int) -> subprocess.Popen[bytes]:
    """Start the process. Signals for all processes of a group do not reach it before it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        return subprocess.Popen(  # noqa: S603 - this program itself
            [*command, str(descriptor)],
            pass_fds=(descriptor,),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),  # ours says where we listen
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ending(code: int) -> str:
    """An exit code in words."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
