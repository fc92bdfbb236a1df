"""Two aerial pictures with 98 outlined trees, and the maps that a half-trained detector's head gives for them.

``load_sample`` needs numpy only, pictures need pillow; nothing here needs torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "data"
NAMES = ("SOAP_061", "OSBS_029")
SAMPLE = FOLDER / "sample.npz"

Batch = dict[str, NDArray[np.generic]]


class Sample(NamedTuple):
    """A head's output and the ground truth it is judged by.

    Attributes:
        feats: Per stride 8, 16, 32 raw maps (B, 4R + C, H_i, W_i) float32, with B = 2, R = 16, C = 1.
        batch: ``batch_idx`` (T,) int64, ``cls`` (T,) int64, ``bboxes`` (T, 4) float32, normalised centre x, centre y,
            width, height.
        image_size: Height and width in pixels that the pictures had when the detector saw them.
        names: The pictures' names, in the order of ``batch_idx``.
    """

    feats: list[NDArray[np.float32]]
    batch: Batch
    image_size: tuple[int, int]
    names: tuple[str, ...]


def load_sample(path: Path = SAMPLE) -> Sample:
    """Read what ``save_sample`` wrote; without a path, the committed one.

    Raises:
        FileNotFoundError: There is no such file.
    """
    with np.load(path) as stored:
        feats = [stored[f"feat_{level}"].astype(np.float32) for level in range(3)]
        batch = {key: stored[key] for key in ("batch_idx", "cls", "bboxes")}
        height, width = (int(side) for side in stored["image_size"])
        return Sample(feats, batch, (height, width), tuple(str(name) for name in stored["names"]))


def save_sample(path: Path, sample: Sample) -> None:
    """Write a sample, its maps in float16: they are predictions, and half the bytes keep three digits of them."""
    fine, middle, coarse = (feat.astype(np.float16) for feat in sample.feats)
    np.savez_compressed(
        path,
        feat_0=fine,
        feat_1=middle,
        feat_2=coarse,
        batch_idx=sample.batch["batch_idx"],
        cls=sample.batch["cls"],
        bboxes=sample.batch["bboxes"],
        image_size=sample.image_size,
        names=np.array(sample.names),
    )


def load_labels() -> Batch:
    """The trees of both pictures, as ``Sample.batch`` describes them."""
    per_picture = [np.loadtxt(FOLDER / f"{name}.txt", dtype=np.float32, ndmin=2) for name in NAMES]
    rows = np.concatenate(per_picture)  # (T, 5)
    return {
        "batch_idx": np.repeat(np.arange(len(NAMES)), [len(labels) for labels in per_picture]),
        "cls": rows[:, 0].astype(np.int64),
        "bboxes": rows[:, 1:],
    }


def load_pictures(size: int) -> NDArray[np.float32]:
    """Both pictures as a detector takes them.

    Args:
        size: Side in pixels to which they are resized; they are square.

    Returns:
        (2, 3, size, size), red, green, blue in [0, 1].
    """
    from PIL import Image

    pictures = []
    for name in NAMES:
        with Image.open(FOLDER / f"{name}.png") as picture:
            resized = picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        pictures.append(np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / 255)
    return np.stack(pictures)
