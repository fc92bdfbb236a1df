"""One object of POSIX shared memory, made by a client: opened for a moment, and copied from and to.

Nothing is mapped, everything is copied by system calls. A client can shorten its object at any moment, and touching a
mapped page beyond the end kills the process, while a read only comes back short. A client can also change values after
they were checked, so that even mapped inputs would have to be copied first.

Objects are neither made nor removed here, and none stays open: when its client has unlinked one, its memory is free.
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
    """What keys of objects have to begin with, without the slash in front.

    Raises:
        ValueError: It is unfit, or this system has no shared memory that can be read like files.
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
    """Check that a key is of an object that may be opened.

    Args:
        key: With or without slashes in front.
        prefix: As :func:`check_prefix` returns it.

    Raises:
        BadRequestError: It is not.
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
        key: What clients call it.
        descriptor: Of the open file.
    """

    def __init__(self, key: str, descriptor: int) -> None:
        self._key = key
        self._descriptor = descriptor
        self._status = os.fstat(descriptor)
        if not S_ISREG(self._status.st_mode):
            raise BadRequestError(f"{key!r} is no shared memory object")

    @property
    def size(self) -> int:
        """Bytes, when it was opened."""
        return self._status.st_size

    @property
    def identity(self) -> tuple[int, int]:
        """Tells it from a later object of the same key; Linux numbers these objects as they are made."""
        return _identity(self._status)

    def read(self, target: memoryview, start: int) -> None:
        """Fill memory with the bytes from ``start`` on.

        Raises:
            BadRequestError: The object ends before.
        """
        done = 0
        while done < len(target):
            count = os.preadv(self._descriptor, [target[done:]], start + done)
            if count == 0:
                raise BadRequestError(f"object {self._key!r} became shorter while it was read; keep its size")
            done += count

    def write(self, data: memoryview, start: int) -> None:
        """Write bytes from ``start`` on.

        Raises:
            BadRequestError: There is no memory for the object's pages.
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
        BadRequestError: There is none, or this process may not read and write it.
        BusyError: This process has no descriptor left.
    """
    try:
        # A link would lead out of the folder, and a pipe would keep the caller waiting.
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
    """Whether the key still leads to the same object."""
    try:
        return _identity(_path(key).lstat()) == identity
    except FileNotFoundError:
        return False


def _path(key: str) -> Path:
    return DIRECTORY / key.lstrip("/")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
