"""What a container runs.

    serve [WORDS of `yolo-assigner serve`]                      the default
    build-engines [WORDS of `yolo-assigner export tensorrt`]    an engine of every model, for the GPU that is there
    health [WORDS of `yolo-assigner serve`]                     exit code 0 when the service in this container is ready
    anything else                                           run as it is

Where a volume is mounted at the folder of engines, `serve` builds those that are missing or not for this machine before
it starts. Nothing is fetched for that. The variable ENGINE_OPTIONS holds words for `yolo-assigner export tensorrt`.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.engines import INTERRUPTED, UNUSABLE, build_engines, first_start, say

COMMAND = (sys.executable, "-P", "-m", "yolo_assigner", "serve")
STOPPING = (signal.SIGTERM, signal.SIGINT)


def main(words: Sequence[str]) -> int:
    """Run a command; comes back only from those that are no program of their own.

    Args:
        words: The command and what it gets; options alone are those of ``serve``.

    Returns:
        Exit code.
    """
    command, *rest = words if words and not words[0].startswith("-") else ("serve", *words)
    if command == "health":
        # Not at the top: reading settings takes longer than all else here.
        from yolo_assigner.serve.healthcheck import main as check_health

        return check_health(rest)
    # The first process of a container ignores the signals that it does not handle. An exception would not do:
    # TensorRT drops those that come while it writes to its log. Files are only ever written whole.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    artifacts = Path(os.environ["YOLO_ASSIGNER_ARTIFACTS"])
    options = shlex.split(os.environ.get("ENGINE_OPTIONS", ""))
    if command == "build-engines":
        return build_engines(artifacts, [*options, *rest])
    if command == "serve":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # it waits for what can be reloaded
        if first_start(artifacts, options) == INTERRUPTED:
            return INTERRUPTED
        # Those that come before the service handles them wait for that, and are not ignored.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        os.execv(COMMAND[0], [*COMMAND, *rest])  # noqa: S606 - signals must reach the service itself
    try:
        os.execvp(command, [command, *rest])  # noqa: S606
    except OSError as error:
        say(f"{command} cannot be run ({error.strerror}); choose serve, build-engines or a program of the image")
        return UNUSABLE


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
