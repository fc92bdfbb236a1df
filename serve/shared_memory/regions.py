"""The regions of shared memory that clients registered by name, and the protocol's calls about them.

Every use checks again that a region's object is still there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from yolo_assigner.serve.errors import BadRequestError, NotFoundError, UnsupportedError
from yolo_assigner.serve.inference.service import Call, Operation
from yolo_assigner.serve.shared_memory.object import SharedObject, check_key, check_prefix, exists, opened
from yolo_assigner.serve.wire.buffers import TensorMemory
from yolo_assigner.serve.wire.request import parse_object
from yolo_assigner.serve.wire.response import EncodedResponse, dump_json
from yolo_assigner.serve.wire.tensors import REMEDY, Place, whole_bytes

MAX_REGIONS = 1024
MAX_NAME = 255  # characters
MAX_TOTAL_BYTES = 2**30


def extensions(shared_memory: bool) -> list[str]:
    """Return the extensions of the protocol that a server has with shared memory, or without."""
    return ["system_shared_memory"] if shared_memory else []


class Region(NamedTuple):
    """A registered part of an object of shared memory.

    Attributes:
        name: Chosen by the client.
        key: The object's key, as the client wrote it.
        offset: Bytes before the region in the object.
        byte_size: Bytes of the region.
        identity: Identity of the object when it was registered.
    """

    name: str
    key: str
    offset: int
    byte_size: int
    identity: tuple[int, int]

    @contextmanager
    def opened(self) -> Iterator[SharedObject]:
        """Open the region's object for the time of a ``with`` block.

        Raises:
            BadRequestError: The object is gone, replaced, or shorter than the region.
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
            yield source

    def status(self) -> dict[str, Any]:
        """Return the protocol's description of the region."""
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.byte_size}


class Regions:
    """All registered regions. They are registered and unregistered in one thread, and used in any.

    Args:
        prefix: Beginning of every key that may be opened; no other object is ever opened.
        limit: Most bytes that one request may have copied out of regions.
        total: Most bytes that all requests together may have copied out of regions.

    Attributes:
        memory: Memory for the copies.
        registered: The regions by name; can be pickled. Replaced and never changed, so that any thread may read it.

    Raises:
        ValueError: The prefix is invalid, or this system has no shared memory that can be read like files.
    """

    def __init__(self, prefix: str, limit: int, total: int = MAX_TOTAL_BYTES) -> None:
        self._prefix = check_prefix(prefix)
        self.memory = TensorMemory(limit, total)
        self.registered: dict[str, Region] = {}

    def register(self, name: str, key: object, offset: object, byte_size: object) -> None:
        """Register a part of an object under a name.

        Args:
            name: Not registered yet, except as a region whose object is gone.
            key: The object's key, with or without a slash in front.
            offset: Bytes before the region in the object.
            byte_size: At least 1.

        Raises:
            BadRequestError: The name or key is invalid, the object cannot be opened or is too small, or there are too
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
        with region.opened():  # which checks its size
            self.registered = {**self.registered, name: region}

    def unregister(self, name: str | None = None) -> None:
        """Unregister one region, or all with None. Unregistering an unknown name succeeds, as in Triton."""
        kept = {} if name is None else {known: region for known, region in self.registered.items() if known != name}
        self.registered = kept

    def status(self, name: str | None = None) -> list[dict[str, Any]]:
        """Describe one region, or all with None, in the protocol's form.

        Raises:
            NotFoundError: No region has that name.
        """
        if name is None:
            return [region.status() for region in self.registered.values()]
        if name not in self.registered:
            raise NotFoundError(f"no region {name!r} is registered")
        return [self.registered[name].status()]

    def check(self, place: Place) -> None:
        """Check that a place can be used now.

        Raises:
            BadRequestError: The region is unknown or does not contain the place, or its object is gone, replaced or
                shorter than it was.
        """
        with self._opened(place):
            pass

    def read(self, place: Place, target: memoryview) -> None:
        """Copy the bytes of a place into memory of the same size.

        Raises:
            BadRequestError: As for :meth:`check`.
        """
        with self._opened(place) as (source, start):
            source.read(target, start)

    def write(self, place: Place, data: memoryview) -> None:
        """Copy bytes into a place that is large enough.

        Raises:
            BadRequestError: As for :meth:`check`.
        """
        with self._opened(place) as (source, start):
            source.write(data, start)

    @contextmanager
    def _opened(self, place: Place) -> Iterator[tuple[SharedObject, int]]:
        """Open the object of a place; yield it and where in it the place begins."""
        region = self.registered.get(place.region)
        if region is None:
            raise BadRequestError(f"no region {place.region!r} is registered; register it first")
        if place.offset + place.byte_size > region.byte_size:
            raise BadRequestError(
                f"region {region.name!r} has {region.byte_size} bytes; {place.byte_size} bytes at offset "
                f"{place.offset} are not inside it"
            )
        with region.opened() as source:
            yield source, region.offset + place.offset

    def _make_room(self, name: str) -> None:
        if name in self.registered or len(self.registered) >= MAX_REGIONS:
            # Clients that died did not unregister, but their objects may be gone.
            self.registered = {
                known: region for known, region in self.registered.items() if exists(region.key, region.identity)
            }
        if name in self.registered:
            raise BadRequestError(f"region {name!r} is registered already; unregister it, or choose another name")
        if len(self.registered) >= MAX_REGIONS:
            raise BadRequestError(f"{MAX_REGIONS} regions are registered, which is the most; unregister some")


def run_region_call(regions: Regions | None, call: Call, body: memoryview) -> EncodedResponse:
    """Answer a request to ``/v2/systemsharedmemory``.

    Args:
        regions: The registered regions; None when shared memory is switched off.
        call: The operation and the region's name; the name None means all regions.
        body: JSON of the region to register.

    Raises:
        UnsupportedError: Shared memory is switched off.
        NotFoundError: No region has that name.
        BadRequestError: The region cannot be registered.
    """
    if regions is None:
        raise UnsupportedError(f"system shared memory is switched off; {REMEDY}")
    match call.operation:
        case Operation.REGION_STATUS:
            return EncodedResponse([dump_json(regions.status(call.target))], None)
        case Operation.REGION_UNREGISTER:
            regions.unregister(call.target)
        case _:
            _register(regions, call.target or "", parse_object(body))
    return EncodedResponse([b"{}"], None)


def _register(regions: Regions, name: str, document: Mapping[str, Any]) -> None:
    for key in ("key", "byte_size"):
        if key not in document:
            raise BadRequestError(f"{key} is missing; send {{key, offset, byte_size}}")
    regions.register(name, document["key"], document.get("offset", 0), document["byte_size"])
