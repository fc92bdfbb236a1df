"""One object of POSIX shared memory, made by a client: opened for a moment, and copied from and to.

Nothing is mapped, everything is copied by system calls. A client can shorten its object at any moment, and touching a
mapped page beyond the end kills the process, while a read only comes back short. A client can also change values after
they were checked, so that even mapped inputs would have to be copied first.

Objects are neither made nor removed here, and none stays open: once its client has unlinked one, its memory is free.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from yolo_assigner.serve.errors import BadRequestError, exhausted

DIRECTORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps these objects; nothing is made there
PREFIX_FORM = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9_.-]*)")


def check_prefix(prefix: str) -> str:
    """Check the beginning that the keys of all objects must have, and return it without the slash in front.

    Raises:
        ValueError: The prefix is invalid, or this system has no shared memory that can be read like files.
    """
    form = PREFIX_FORM.fullmatch(prefix)
    if form is None:
        raise ValueError(
            f"the prefix of shared memory is {prefix!r}; write letters, digits, '_', '.' and '-', beginning with none "
            "of the last two"
        )
    if not DIRECTORY.is_dir():
        raise ValueError(f"shared memory needs Linux's {DIRECTORY}, which is not here; serve without it")
    return form[1]


def check_key(key: object, prefix: str) -> str:
    """Check that a key belongs to an object that may be opened.

    Args:
        key: With or without slashes in front.
        prefix: As :func:`check_prefix` returns it.

    Returns:
        The key, unchanged.

    Raises:
        BadRequestError: The key is not a string, has another prefix, or leads elsewhere.
    """
    name = key.lstrip("/") if isinstance(key, str) else ""
    if not isinstance(key, str) or not name.startswith(prefix) or "/" in name or "\0" in name:
        raise BadRequestError(
            f"key is {key!r}; this server opens objects whose keys begin with {prefix!r} and have no slash after it"
        )
    return key


class SharedObject:
    """An open object.

    Args:
        key: The object's key, for errors.
        descriptor: Descriptor of the open file.
    """

    def __init__(self, key: str, descriptor: int) -> None:
        self._key = key
        self._descriptor = descriptor
        self._status = os.fstat(descriptor)
        if not S_ISREG(self._status.st_mode):
            raise BadRequestError(f"{key!r} is no shared memory object")

    @property
    def size(self) -> int:
        """Bytes of the object when it was opened."""
        return self._status.st_size

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode, which tell the object from a later one of the same key."""
        return _identity(self._status)

    def read(self, target: memoryview, start: int) -> None:
        """Fill memory with the object's bytes from ``start`` on.

        Raises:
            BadRequestError: The object ends before the memory is full.
        """
        done = 0
        while done < len(target):
            count = os.preadv(self._descriptor, [target[done:]], start + done)
            if count == 0:
                raise BadRequestError(f"object {self._key!r} became shorter while it was read; keep its size")
            done += count

    def write(self, data: memoryview, start: int) -> None:
        """Write bytes to the object from ``start`` on.

        Raises:
            BadRequestError: The system has no memory for the object's pages.
        """
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._descriptor, data[done:], start + done)
            except OSError as error:
                raise BadRequestError(f"object {self._key!r} cannot be written ({error.strerror})") from error


@contextmanager
def opened(key: str) -> Iterator[SharedObject]:
    """Open an object for the time of a ``with`` block.

    Args:
        key: With or without slashes in front, none inside.

    Raises:
        BadRequestError: The object does not exist, or this process may not read and write it.
        BusyError: This process has no file descriptor left.
    """
    try:
        # A link would lead out of the folder, and opening a pipe would wait for its other end.
        descriptor = os.open(_path(key), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise BadRequestError(f"there is no shared memory object {key!r}; create it first") from error
    except OSError as error:
        if busy := exhausted(error):
            raise busy from error
        raise BadRequestError(f"object {key!r} cannot be opened for reading and writing ({error.strerror})") from error
    try:
        yield SharedObject(key, descriptor)
    finally:
        os.close(descriptor)


def exists(key: str, identity: tuple[int, int]) -> bool:
    """Return whether the key still leads to the object of that identity."""
    try:
        return _identity(_path(key).lstat()) == identity
    except FileNotFoundError:
        return False


def _path(key: str) -> Path:
    return DIRECTORY / key.lstrip("/")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
