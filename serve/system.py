"""Settings of the process itself: memory, file descriptors, priorities, threads and garbage collection."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

MIB = 2**20
PREFIX = "YOLO_ASSIGNER_"  # of the environment variables that are settings
# mallopt(3). By default blocks of 128 KiB and more are taken from the system and given back, page by page, until the
# first large one was freed: a request of 19 MB then takes 1.2 times as long.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGE, KEPT = 2**25, 2**26  # bytes: the most that glibc itself raises them to
MOST_OOM_SCORE = 1000  # proc_pid_oom_score_adj(5): as if the process used all of the memory
SPARE_DESCRIPTORS = 32  # or an eighth of all if that is less
LIMIT_FILES = {"cgroup2": "memory.max", "cgroup": "memory.limit_in_bytes"}  # by the type of the file system
# Added to the niceness of engine threads and of the engine process, below the event loop, which gets three and nine
# times their share of a core. Threads of one process also wait for each other's interpreter, so they get more.
NICENESS, PROCESS_NICENESS = 5, 10
# Of the interpreter, in place of 0.005: the event loop needs it several times for one reply, and waits each time.
SWITCH_SECONDS = 0.001
MOST_HELPERS = 32
_USUAL = os.getpriority(os.PRIO_PROCESS, 0) if sys.platform == "linux" else 0  # when the process began


class Memory(NamedTuple):
    """The memory that this process and its children may use together.

    Attributes:
        nbytes: Bytes.
        source: File of the limit, or "the machine".
    """

    nbytes: int
    source: str

    def __str__(self) -> str:
        return f"{self.nbytes // 2**20} MiB of memory by {self.source}"


def keep_large_blocks() -> None:
    """Keep freed memory in this process for reuse. Does nothing without glibc."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            library = ctypes.CDLL(None)
            library.mallopt(MMAP_THRESHOLD, LARGE)
            library.mallopt(TRIM_THRESHOLD, KEPT)


def raise_descriptor_limit() -> int:
    """Raise the limit of open files to the most that is allowed.

    Every connection is an open file, and every piece of shared memory up to three.

    Returns:
        The limit; ``sys.maxsize`` where there is none or it is not known.
    """
    if sys.platform == "linux":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if now != resource.RLIM_INFINITY:
            return now
    return sys.maxsize


def is_spare(descriptor: int) -> bool:
    """Whether a new descriptor is one of the last, which are kept for refusals and for files that are closed soon.

    The system always hands out the lowest free number.
    """
    if sys.platform != "linux":
        return False
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most != resource.RLIM_INFINITY and descriptor >= most - min(SPARE_DESCRIPTORS, most // 8)


def prefer_as_oom_victim(pid: int) -> None:
    """Make the system kill a process before all others when memory is short."""
    if sys.platform == "linux":
        with suppress(OSError):  # it has ended, or there is no /proc
            Path(f"/proc/{pid}/oom_score_adj").write_text(str(MOST_OOM_SCORE), encoding="ascii")


def memory_limit(root: Path = Path("/")) -> Memory:
    """The smallest of the machine's memory and the limits of this process's control groups and their parents.

    Args:
        root: Folder of ``proc`` and of the mounts that it names.
    """
    found = [Memory(nbytes, str(file)) for file in _limit_files(root) if (nbytes := _read_limit(file)) is not None]
    if hasattr(os, "sysconf"):
        found.append(Memory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the machine"))
    return min(found, default=Memory(sys.maxsize, "a system that does not say how much"))


def _limit_files(root: Path) -> Iterator[Path]:
    """Files of cgroup versions 2 and 1, from the innermost group outwards; some may not exist."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    paths = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = path
    for line in mounts:
        left, _, right = line.partition(" - ")
        shown, place = left.split()[3:5]
        kind, _, options = right.split()
        if kind in paths and (kind == "cgroup2" or "memory" in options.split(",")):
            yield from _outwards(root / place.lstrip("/"), shown, paths[kind], LIMIT_FILES[kind])


def _outwards(mount: Path, shown: str, path: str, name: str) -> Iterator[Path]:
    """A file of a group and of its parents, as far as a mount shows them.

    Args:
        mount: Mount point.
        shown: Group at the mount point; in a container it often is the process's own.
        path: The process's group.
        name: Name of the file.
    """
    inner = PurePosixPath(path)
    inside = inner.relative_to(shown) if inner.is_relative_to(shown) else PurePosixPath()
    for group in (inside, *inside.parents):
        yield mount / group / name


def _read_limit(file: Path) -> int | None:
    """The limit in bytes; None when there is none."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def lower_thread_priority() -> None:
    """Lower the priority of the calling thread and of threads that it starts. Linux only; else does nothing."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # some sandboxes forbid it
            level = max(os.getpriority(os.PRIO_PROCESS, thread), _USUAL + NICENESS)
            os.setpriority(os.PRIO_PROCESS, thread, level)


def lower_process_priority() -> None:
    """Lower the priority of all threads of an engine process and of those that they start. Linux only."""
    if sys.platform == "linux":
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, int(task.name), _USUAL + PROCESS_NICENESS)


def helper_threads() -> ThreadPoolExecutor:
    """A pool of threads for work on large bodies, one per core: more would only wait for the interpreter.

    Their priority is not lowered, because the event loop waits for the interpreter that they hold.
    """
    count = min(max(os.cpu_count() or 1, 2), MOST_HELPERS)
    return ThreadPoolExecutor(count, thread_name_prefix="helper")


def shorten_switch_interval() -> None:
    """Make threads take the interpreter from each other more often."""
    sys.setswitchinterval(SWITCH_SECONDS)


def freeze_gc() -> None:
    """Exclude all objects of now, such as modules and graphs, from garbage collection.

    A full collection would visit all of them, tenths of a second on a busy machine in which no request is answered.
    """
    gc.collect()
    gc.freeze()
