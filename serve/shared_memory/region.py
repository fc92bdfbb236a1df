"""What every region of shared memory is, wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.shared_memory.object import SharedObject, exists, opened


class Kind(StrEnum):
    """Where a region is."""

    SYSTEM = "system"
    CUDA = "cuda"


class Source(Protocol):
    """Memory that is open."""

    def read(self, target: memoryview, start: int) -> None:
        """Fill memory with the bytes from ``start`` on, or raise a :class:`BadRequestError`."""

    def write(self, data: memoryview, start: int) -> None:
        """Write bytes from ``start`` on, or raise a :class:`BadRequestError`."""


class Region(Protocol):
    """A registered piece."""

    @property
    def name(self) -> str:
        """Chosen by the client."""

    @property
    def byte_size(self) -> int:
        """Bytes."""

    def opened(self) -> AbstractContextManager[tuple[Source, int]]:
        """The memory and where in it the region begins, or a :class:`BadRequestError`."""

    def exists(self) -> bool:
        """Whether its memory is still there."""

    def status(self) -> dict[str, Any]:
        """As the protocol shows it."""


class Registered(NamedTuple):
    """A region and where it is."""

    kind: Kind
    region: Region


class SystemRegion(NamedTuple):
    """A part of an object.

    Attributes:
        name: Chosen by the client.
        key: The object's, as the client wrote it.
        offset: Bytes from the object's begin.
        byte_size: Bytes of the region.
        identity: Of the object.
    """

    name: str
    key: str
    offset: int
    byte_size: int
    identity: tuple[int, int]

    @contextmanager
    def opened(self) -> Iterator[tuple[SharedObject, int]]:
        """The object, and where in it the region begins.

        Raises:
            BadRequestError: It is gone, replaced, or shorter than it was.
        """
        with opened(self.key) as source:
            if source.identity != self.identity:
                raise BadRequestError(
                    f"region {self.name!r}: object {self.key!r} is another one than was registered; register it anew"
                )
            if self.offset + self.byte_size > source.size:
                raise BadRequestError(
                    f"region {self.name!r} is {self.byte_size} bytes at offset {self.offset}, but object {self.key!r} "
                    f"has {source.size} bytes"
                )
            yield source, self.offset

    def exists(self) -> bool:
        """Whether the key still leads to the same object."""
        return exists(self.key, self.identity)

    def status(self) -> dict[str, Any]:
        """As the protocol shows it."""
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.byte_size}


def find_region(name: str, key: str, offset: int, byte_size: int) -> SystemRegion:
    """A region of an object that is there and large enough.

    Raises:
        BadRequestError: It is not.
    """
    with opened(key) as source:
        region = SystemRegion(name, key, offset, byte_size, source.identity)
    with region.opened():
        return region
