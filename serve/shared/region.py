"""What every region of shared memory is, wherever it lies."""

from __future__ import annotations

from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Any, NamedTuple, Protocol


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
