"""A control group that limits the memory of its processes together, as a container does. Linux, as root."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROCESSES = "cgroup.procs"
EMPTY_SECONDS = 10.0


@contextmanager
def memory_group(nbytes: int) -> Iterator[Path]:
    """Make a control group with a memory limit and without swap, and remove it at the end.

    Args:
        nbytes: Bytes that its processes may use together.

    Yields:
        The group's folder, of version 2 or version 1.

    Raises:
        OSError: No group can be made, or processes are still in it at the end.
    """
    group = _make(nbytes)
    try:
        yield group
    finally:
        deadline = time.monotonic() + EMPTY_SECONDS
        while (group / PROCESSES).read_text(encoding="ascii") and time.monotonic() < deadline:
            time.sleep(0.05)
        group.rmdir()


def inside(group: Path) -> list[str]:
    """First words of a command that executes the rest of it in a group."""
    return ["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(group / PROCESSES)]


def _make(nbytes: int) -> Path:
    for parent, limit, (swap, most) in (
        (Path("/sys/fs/cgroup"), "memory.max", ("memory.swap.max", 0)),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", ("memory.memsw.limit_in_bytes", nbytes)),
    ):
        with suppress(OSError):
            group = Path(tempfile.mkdtemp(prefix="yolo-assigner-", dir=parent))
            if os.access(group / limit, os.W_OK) and (group / PROCESSES).exists():
                (group / limit).write_text(str(nbytes), encoding="ascii")
                if (group / swap).exists():
                    (group / swap).write_text(str(most), encoding="ascii")
                return group
            group.rmdir()
    raise OSError("no control group of memory can be made here; it takes root and a writable /sys/fs/cgroup")
