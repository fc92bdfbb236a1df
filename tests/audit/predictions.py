"""Folders of stored predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from examples.dataset import FOLDER

Arrays = dict[str, NDArray[Any]]
STRIDES = (8, 16, 32)
REG_MAX = 16


class Sizes(NamedTuple):
    """Sizes of random predictions.

    Attributes:
        counts: Objects of each image.
        classes: C.
        height: Pixels.
        width: Pixels.
    """

    counts: tuple[int, ...]
    classes: int = 3
    height: int = 64
    width: int = 96


def random_predictions(sizes: Sizes, seed: int = 0) -> Arrays:
    """Maps and ground truth as a file holds them; the boxes of the images do not come in their order."""
    random = np.random.default_rng(seed)
    images, objects = len(sizes.counts), sum(sizes.counts)
    order = random.permutation(objects)
    centre, side = random.uniform(0.2, 0.8, (objects, 2)), random.uniform(0.05, 0.4, (objects, 2))
    maps = {
        f"feat_{level}": random.standard_normal(
            (images, 4 * REG_MAX + sizes.classes, sizes.height // stride, sizes.width // stride), np.float32
        )
        for level, stride in enumerate(STRIDES)
    }
    return maps | {
        "batch_idx": np.repeat(np.arange(images), sizes.counts)[order],
        "cls": random.integers(0, sizes.classes, objects),
        "bboxes": np.concatenate((centre, side), axis=1).astype(np.float32),
    }


def save(path: Path, arrays: Arrays) -> None:
    """Store predictions as an .npz file."""
    np.savez(path, allow_pickle=False, **arrays)


def small_folder(folder: Path, files: int) -> Path:
    """A folder with some files of two small images, one of them in a folder below."""
    for number in range(files):
        path = folder / ("more" if number == 1 else ".") / f"{number:03d}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, random_predictions(Sizes((3, 1)), number))
    return folder


def mixed_folder(folder: Path) -> Path:
    """The sample, predictions with an image without objects, such without any, and a file that is none."""
    folder.mkdir()
    (folder / "sample.npz").write_bytes((FOLDER / "sample.npz").read_bytes())
    safetensors.numpy.save_file(random_predictions(Sizes((4, 0, 2))), folder / "random.safetensors")
    save(folder / "empty.npz", random_predictions(Sizes((0, 0))))
    (folder / "broken.npz").write_bytes(b"no archive")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder and those below."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
