"""What a process asks of the system for itself."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

# mallopt(3). By default blocks of 128 KiB come from the system and go back to it, page by page, until the first large
# one was freed: a request of 19 MB then takes 1.2 times as long.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGE, KEPT = 2**25, 2**26  # bytes: what glibc itself comes to at most


def keep_large_blocks() -> None:
    """Let this process use freed memory again in place of giving it back. Does nothing without glibc."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            library = ctypes.CDLL(None)
            library.mallopt(MMAP_THRESHOLD, LARGE)
            library.mallopt(TRIM_THRESHOLD, KEPT)


def allow_descriptors() -> None:
    """Open as many files as the system lets: every connection is one, and every piece of shared memory up to three."""
    if sys.platform == "linux":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
