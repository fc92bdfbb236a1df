"""Objects of shared memory of ``benchmarks.load``: made before its clients, used by all, gone in the end."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.load.cases import OWNER, Payload, offsets

DIRECTORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps these objects
PREFIX = f"yolo-assigner-load-{os.getpid()}-"
STEM = OWNER.rstrip("0")
DIGITS = len(OWNER) - len(STEM)


def region_of(owner: int) -> str:
    """The region of a connection's outputs."""
    return f"{STEM}{owner:0{DIGITS}d}"


@contextmanager
def objects() -> Iterator[dict[str, mmap.mmap]]:
    """Objects by the name of their region; filled by :func:`make`, unlinked in the end."""
    made: dict[str, mmap.mmap] = {}
    try:
        yield made
    finally:
        for name in made:
            (DIRECTORY / f"{PREFIX}{name}").unlink()


def make(name: str, size: int) -> mmap.mmap:
    """An object that processes forked from this one share."""
    with (DIRECTORY / f"{PREFIX}{name}").open("x+b") as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)


def fill(memory: mmap.mmap, payload: Payload) -> None:
    """Write the inputs of a request to where it says that they are."""
    arrays = list(payload.shared.values())
    for offset, array in zip(offsets(array.nbytes for array in arrays), arrays, strict=True):
        np.ndarray(array.shape, array.dtype, memory, offset)[...] = array


def written(memory: mmap.mmap, sizes: Sequence[int]) -> list[bytes]:
    """What a reply wrote."""
    return [memory[offset : offset + size] for offset, size in zip(offsets(sizes), sizes, strict=True)]
