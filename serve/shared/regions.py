"""The pieces of shared memory that clients registered by name. Every use checks again that they are still there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from serve.errors import BadRequestError, NotFoundError
from serve.shared.object import SharedObject, check_key, check_prefix, exists, opened
from serve.tensors.place import Place, whole_bytes
from serve.tensors.tensor_memory import TensorMemory

MAX_REGIONS = 1024
MAX_NAME = 255  # characters
MAX_TOTAL_BYTES = 2**30


class Region(NamedTuple):
    """A registered part of an object.

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


class Regions:
    """All regions. They are registered and forgotten in one thread, and used in any.

    Args:
        prefix: What the keys of objects must begin with; no other object is ever opened.
        limit: Most bytes that one request may have copied out of regions.
        total: Most bytes of all requests at one time.

    Attributes:
        memory: Where to copy to.

    Raises:
        ValueError: The prefix is unfit, or this system has no shared memory that can be read like files.
    """

    def __init__(self, prefix: str, limit: int, total: int = MAX_TOTAL_BYTES) -> None:
        self._prefix = check_prefix(prefix)
        self.memory = TensorMemory(limit, total)
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: object, offset: object, byte_size: object) -> None:
        """Give a name to a part of an object.

        Args:
            name: Not taken yet, but that of a region whose object is gone can be taken again.
            key: The object's, with or without a slash in front.
            offset: Bytes from the object's begin.
            byte_size: At least 1.

        Raises:
            BadRequestError: The name or key is unfit, the object cannot be opened or is too small, or there are too
                many regions.
        """
        key = check_key(key, self._prefix)
        offset = whole_bytes(offset, f"offset of region {name!r}")
        byte_size = whole_bytes(byte_size, f"byte_size of region {name!r}", least=1)
        if len(name) > MAX_NAME:
            raise BadRequestError(f"the region's name has {len(name)} characters; {MAX_NAME} is the most")
        self._make_room(name)
        with opened(key) as source:
            region = Region(name, key, offset, byte_size, source.identity)
            _check(region, source)
        self._regions[name] = region

    def unregister(self, name: str | None = None) -> None:
        """Forget one region, or all; what is not registered is forgotten already."""
        for known in list(self._regions) if name is None else [name]:
            self._regions.pop(known, None)

    def status(self, name: str | None = None) -> list[dict[str, Any]]:
        """Name, key, offset and byte_size of one region, or of all.

        Raises:
            NotFoundError: There is no region of that name.
        """
        if name is not None and name not in self._regions:
            raise NotFoundError(f"no region {name!r} is registered")
        chosen = list(self._regions.values()) if name is None else [self._regions[name]]
        return [{"name": one.name, "key": one.key, "offset": one.offset, "byte_size": one.byte_size} for one in chosen]

    def check(self, place: Place) -> None:
        """See that a place can be used now.

        Raises:
            BadRequestError: The region is unknown or does not hold the place, or its object is gone, replaced or
                shorter than it was.
        """
        with self._found(place):
            pass

    def read(self, place: Place, target: memoryview) -> None:
        """Copy a place to memory of its size.

        Raises:
            BadRequestError: As :meth:`check`.
        """
        with self._found(place) as (source, start):
            source.read(target, start)

    def write(self, place: Place, data: memoryview) -> None:
        """Copy bytes to a place that has room for them.

        Raises:
            BadRequestError: As :meth:`check`.
        """
        with self._found(place) as (source, start):
            source.write(data, start)

    @contextmanager
    def _found(self, place: Place) -> Iterator[tuple[SharedObject, int]]:
        """The object of a place, and where in it the place begins."""
        region = self._regions.get(place.region)
        if region is None:
            raise BadRequestError(f"no region {place.region!r} is registered; register it first")
        if place.offset + place.byte_size > region.byte_size:
            raise BadRequestError(
                f"region {region.name!r} has {region.byte_size} bytes; {place.byte_size} bytes at offset "
                f"{place.offset} are not inside it"
            )
        with opened(region.key) as source:
            _check(region, source)
            yield source, region.offset + place.offset

    def _make_room(self, name: str) -> None:
        if name in self._regions or len(self._regions) >= MAX_REGIONS:
            # Clients that died did not unregister, but their objects are gone.
            known = self._regions.items()
            self._regions = {name: region for name, region in known if exists(region.key, region.identity)}
        if name in self._regions:
            raise BadRequestError(f"region {name!r} is registered already; unregister it, or choose another name")
        if len(self._regions) >= MAX_REGIONS:
            raise BadRequestError(f"{MAX_REGIONS} regions are registered, which is the most; unregister some")


def _check(region: Region, source: SharedObject) -> None:
    if source.identity != region.identity:
        raise BadRequestError(
            f"region {region.name!r}: object {region.key!r} is another one than was registered; register it anew"
        )
    if region.offset + region.byte_size > source.size:
        raise BadRequestError(
            f"region {region.name!r} is {region.byte_size} bytes at offset {region.offset}, but object {region.key!r} "
            f"has {source.size} bytes"
        )
