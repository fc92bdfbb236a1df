"""The pieces of shared memory that clients registered by name. Every use checks again that they are still there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from yolo_assigner.serve.errors import BadRequestError, NotFoundError, UnsupportedError
from yolo_assigner.serve.shared_memory.cuda import Gpus
from yolo_assigner.serve.shared_memory.object import check_key, check_prefix
from yolo_assigner.serve.shared_memory.region import Kind, Registered, Source, find_region
from yolo_assigner.serve.wire.buffers import TensorMemory
from yolo_assigner.serve.wire.tensors import REMEDY, Place, whole_bytes

MAX_REGIONS = 1024
MAX_NAME = 255  # characters
MAX_TOTAL_BYTES = 2**30


class Regions:
    """All regions. They are registered and forgotten in one thread, and used in any.

    Args:
        prefix: What the keys of objects must begin with; no other object is ever opened. None: those of the system are
            switched off.
        limit: Most bytes that one request may have copied out of regions.
        total: Most bytes of all requests at one time.
        gpus: On which regions may be; None: those are switched off.

    Attributes:
        memory: Where to copy to.

    Raises:
        ValueError: The prefix is unfit, or this system has no shared memory that can be read like files.
    """

    def __init__(self, prefix: str | None, limit: int, total: int = MAX_TOTAL_BYTES, gpus: Gpus | None = None) -> None:
        self._prefix = None if prefix is None else check_prefix(prefix)
        self._gpus = gpus
        self.memory = TensorMemory(limit, total)
        self._regions: dict[str, Registered] = {}

    @property
    def registered(self) -> dict[str, Registered]:
        """All regions; can be pickled."""
        return self._regions

    def restore(self, registered: dict[str, Registered]) -> None:
        """Take over the regions of an earlier process; each use checks them as always."""
        self._regions = registered

    @property
    def kinds(self) -> list[Kind]:
        """Those that are switched on."""
        on = {Kind.SYSTEM: self._prefix is not None, Kind.CUDA: self._gpus is not None}
        return [kind for kind in Kind if on[kind]]

    def load(self) -> None:
        """See that what is switched on can be used.

        Raises:
            ValueError: It cannot.
        """
        if self._gpus is not None:
            self._gpus.check()

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
        if self._prefix is None:
            raise UnsupportedError(f"system shared memory is switched off; {REMEDY}")
        key = check_key(key, self._prefix)
        offset = whole_bytes(offset, f"offset of region {name!r}")
        byte_size = self._check(name, byte_size)
        self._regions[name] = Registered(Kind.SYSTEM, find_region(name, key, offset, byte_size))

    def register_cuda(self, name: str, raw_handle: object, device_id: object, byte_size: object) -> None:
        """Give a name to memory of a GPU.

        Args:
            name: As in :meth:`register`.
            raw_handle: An object whose ``b64`` is CUDA's handle in base64.
            device_id: The GPU's index.
            byte_size: At least 1.

        Raises:
            BadRequestError: The name is unfit, the memory cannot be opened or is too small, or there are too many
                regions.
        """
        if self._gpus is None:
            raise UnsupportedError(f"CUDA shared memory is switched off; {REMEDY}")
        byte_size = self._check(name, byte_size)
        self._regions[name] = Registered(Kind.CUDA, self._gpus.region(name, raw_handle, device_id, byte_size))

    def unregister(self, kind: Kind, name: str | None = None) -> None:
        """Forget one region of a kind, or all; what is not registered is forgotten already."""
        for known, registered in list(self._regions.items()):
            if registered.kind == kind and name in (None, known):
                self._regions.pop(known, None)

    def status(self, kind: Kind, name: str | None = None) -> list[dict[str, Any]]:
        """One region of a kind, or all, as the protocol shows them.

        Raises:
            NotFoundError: There is no region of that name.
        """
        known = {key: region for key, (its, region) in self._regions.items() if its == kind}
        if name is not None and name not in known:
            raise NotFoundError(f"no region {name!r} is registered")
        return [region.status() for region in (known.values() if name is None else [known[name]])]

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
    def _found(self, place: Place) -> Iterator[tuple[Source, int]]:
        """The memory of a place, and where in it the place begins."""
        registered = self._regions.get(place.region)
        if registered is None:
            raise BadRequestError(f"no region {place.region!r} is registered; register it first")
        region = registered.region
        if place.offset + place.byte_size > region.byte_size:
            raise BadRequestError(
                f"region {region.name!r} has {region.byte_size} bytes; {place.byte_size} bytes at offset "
                f"{place.offset} are not inside it"
            )
        with region.opened() as (source, begin):
            yield source, begin + place.offset

    def _check(self, name: str, byte_size: object) -> int:
        """See that a region can be added, but for its memory."""
        size = whole_bytes(byte_size, f"byte_size of region {name!r}", least=1)
        if len(name) > MAX_NAME:
            raise BadRequestError(f"the region's name has {len(name)} characters; {MAX_NAME} is the most")
        self._make_room(name)
        return size

    def _make_room(self, name: str) -> None:
        if name in self._regions or len(self._regions) >= MAX_REGIONS:
            # Clients that died did not unregister, but their memory is gone.
            known = self._regions.items()
            self._regions = {name: registered for name, registered in known if registered.region.exists()}
        if name in self._regions:
            raise BadRequestError(f"region {name!r} is registered already; unregister it, or choose another name")
        if len(self._regions) >= MAX_REGIONS:
            raise BadRequestError(f"{MAX_REGIONS} regions are registered, which is the most; unregister some")
