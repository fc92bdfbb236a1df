"""What a server and the processes that it started hold. Linux only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SEGMENT = "/memfd:"  # of memory that both processes see
PEAK_SECONDS = 0.002


def processes(pid: int) -> list[int]:
    """A process and its children."""
    with suppress(FileNotFoundError):
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())]
    return [pid]


def resident(pid: int) -> int:
    """Bytes of memory of a process and its children. What they share by segments counts once, libraries each time."""
    private, shared = 0, [0]
    for process in processes(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
            fields = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
            private += fields.get("RssAnon", 0) + fields.get("RssFile", 0)
            shared.append(fields.get("RssShmem", 0))
    return 1024 * (private + max(shared))


def peak_resident(pid: int, work: Callable[[], object]) -> int:
    """The most of :func:`resident` while something is done, looked at every two milliseconds."""
    done = threading.Event()
    seen = [resident(pid)]

    def look() -> None:
        while not done.wait(PEAK_SECONDS):
            seen.append(resident(pid))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        work()
    finally:
        done.set()
        watching.join()
    return max(*seen, resident(pid))


def descriptors(pid: int) -> int:
    """Files and sockets that a process and its children have open, but for segments."""
    return sum(1 for target in _opened(pid) if not target.startswith(SEGMENT))


def segments(pid: int) -> int:
    """Descriptors of segments that a process and its children have open."""
    return sum(1 for target in _opened(pid) if target.startswith(SEGMENT))


def _opened(pid: int) -> list[str]:
    targets = []
    for process in processes(pid):
        with suppress(FileNotFoundError):
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed meanwhile
                    targets.append(str(descriptor.readlink()))
    return targets
