"""Shared memory of ``benchmarks.load``: made before its clients, used by all, unlinked at the end."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.common.client import Payload
from benchmarks.load.cases import OWNER, offsets

DIRECTORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps these objects
PREFIX = f"yolo-assigner-load-{os.getpid()}-"
STEM = OWNER.rstrip("0")
DIGITS = len(OWNER) - len(STEM)


def region_of(owner: int) -> str:
    """Region of the outputs of a connection."""
    return f"{STEM}{owner:0{DIGITS}d}"


@contextmanager
def objects() -> Iterator[dict[str, mmap.mmap]]:
    """Yield an empty dict of objects by region, to be filled by :func:`make`, and unlink the objects at the end."""
    made: dict[str, mmap.mmap] = {}
    try:
        yield made
    finally:
        for name in made:
            (DIRECTORY / f"{PREFIX}{name}").unlink()


def make(name: str, size: int) -> mmap.mmap:
    """Make an object that processes forked from this one share."""
    with (DIRECTORY / f"{PREFIX}{name}").open("x+b") as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)


def fill(memory: mmap.mmap, payload: Payload) -> None:
    """Write the inputs of a request to their places."""
    arrays = list(payload.shared.values())
    for offset, array in zip(offsets(array.nbytes for array in arrays), arrays, strict=True):
        np.ndarray(array.shape, array.dtype, memory, offset)[...] = array


def written(memory: mmap.mmap, sizes: Sequence[int]) -> list[bytes]:
    """Read the outputs that a reply wrote."""
    return [memory[offset : offset + size] for offset, size in zip(offsets(sizes), sizes, strict=True)]
