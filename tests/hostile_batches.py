"""Training batches that break criteria: not finite, degenerate, empty, huge, invalid, and combinations of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STRIDES = (8, 16, 32)
NUM_CLASSES, REG_MAX = 3, 16
BOX_CHANNELS = 4 * REG_MAX
# Height and width in pixels; the last two are not multiples of the strides.
SIZES = ((64, 64), (96, 128), (128, 64), (32, 32), (70, 90), (75, 85))
NOT_FINITE = (np.nan, np.inf, -np.inf)
MOST_IMAGES, MOST_BOXES, MANY_BOXES = 3, 12, 120

Array = NDArray[Any]
Columns = dict[str, Array]


class HostileBatch(NamedTuple):
    """Arguments of a criterion.

    Attributes:
        kind: Key in ``SPOILERS``.
        feats: Maps (B, 4R + C, H_i, W_i), float32.
        batch: ``batch_idx`` (T,), ``cls`` (T,), ``bboxes`` (T, 4).
    """

    kind: str
    feats: list[Tensor]
    batch: dict[str, Tensor]


def hostile_batch(seed: int) -> HostileBatch:
    """Make the batch of a seed; kinds follow one another as seeds do."""
    rng = np.random.default_rng(seed)
    kind = list(SPOILERS)[seed % len(SPOILERS)]
    images, size = int(rng.integers(1, MOST_IMAGES + 1)), SIZES[rng.integers(len(SIZES))]
    feats = _maps(rng, images, size)
    columns = _boxes(rng, images, int(rng.integers(0, MOST_BOXES + 1)))
    for spoil in SPOILERS[kind]:
        spoil(rng, feats, columns)
    batch = {name: torch.from_numpy(column) for name, column in columns.items()}
    return HostileBatch(kind, [torch.from_numpy(feat) for feat in feats], batch)


def _maps(rng: np.random.Generator, images: int, size: tuple[int, int]) -> list[Array]:
    grids = [tuple(-(-side // stride) for side in size) for stride in STRIDES]
    return [2 * rng.standard_normal((images, BOX_CHANNELS + NUM_CLASSES, *grid)).astype(np.float32) for grid in grids]


def _boxes(rng: np.random.Generator, images: int, count: int) -> Columns:
    return {
        "batch_idx": np.sort(rng.integers(images, size=count)).astype(np.float32),
        "cls": rng.integers(NUM_CLASSES, size=count).astype(np.float32),
        "bboxes": np.concatenate((rng.uniform(0, 1, (count, 2)), rng.uniform(0, 0.8, (count, 2))), 1, dtype=np.float32),
    }


def _not_finite_logits(rng: np.random.Generator, feats: list[Array], _: Columns) -> None:
    """Single logits of classes and of box distributions."""
    for _round in range(rng.integers(1, 9)):
        feat = feats[rng.integers(len(feats))]
        channels = (0, BOX_CHANNELS) if rng.random() < 0.5 else (BOX_CHANNELS, feat.shape[1])
        place = [rng.integers(side) for side in feat.shape]
        place[1] = rng.integers(*channels)
        feat[tuple(place)] = NOT_FINITE[rng.integers(3)]


def _lost_anchors(rng: np.random.Generator, feats: list[Array], _: Columns) -> None:
    """All logits of one anchor per level."""
    for feat in feats:
        image, y, x = (rng.integers(side) for side in (feat.shape[0], *feat.shape[2:]))
        feat[image, :, y, x] = NOT_FINITE[rng.integers(3)]


def _huge_logits(rng: np.random.Generator, feats: list[Array], _: Columns) -> None:
    for level, feat in enumerate(feats):
        feats[level] = feat * np.float32(10.0 ** rng.integers(2, 30))


def _constant_maps(_rng: np.random.Generator, feats: list[Array], _: Columns) -> None:
    """All anchors predict the same: ties."""
    for feat in feats:
        feat[:] = feat[:1, :, :1, :1]


def _degenerate_boxes(rng: np.random.Generator, _: list[Array], columns: Columns) -> None:
    """Boxes without area, with negative size, between anchor points, outside the image, or equal to one another."""
    boxes = columns["bboxes"]
    for box in boxes:
        match rng.integers(6):
            case 0:
                box[2 + rng.integers(2)] = 0.0
            case 1:
                box[2:] *= -1
            case 2:
                box[2:] = rng.uniform(0, 0.02, 2)
            case 3:
                box[:2] += rng.choice((-1.5, 1.2))
            case 4:
                box[:] = boxes[0]
    np.clip(boxes, -2, 2, out=boxes)


def _no_boxes(rng: np.random.Generator, _: list[Array], columns: Columns) -> None:
    """No boxes in the whole batch or in one image, or only boxes of zeros."""
    match rng.integers(3):
        case 0:
            kept = np.zeros(len(columns["cls"]), bool)
        case 1:
            kept = columns["batch_idx"] != 0
        case _:
            kept = np.ones(len(columns["cls"]), bool)
            columns["bboxes"][:] = 0.0
    for name, column in columns.items():
        columns[name] = column[kept]


def _many_boxes(rng: np.random.Generator, feats: list[Array], columns: Columns) -> None:
    columns.update(_boxes(rng, feats[0].shape[0], MANY_BOXES))


def _wrong_columns(rng: np.random.Generator, _: list[Array], columns: Columns) -> None:
    """One invalid number; in a quarter of the batches none."""
    if rng.random() < 1 / 4 or not len(columns["cls"]):
        return
    name, value = WRONG[rng.integers(len(WRONG))]
    place = rng.integers(len(columns["cls"]))
    if name == "bboxes":
        columns[name][place, rng.integers(4)] = value
    else:
        columns[name][place] = value


def _wrong_maps(rng: np.random.Generator, feats: list[Array], _: Columns) -> None:
    """Levels in another order, of another size, without cells, or one too few; in a fifth of the batches unchanged."""
    match rng.integers(5):
        case 0:
            feats.reverse()
        case 1:
            feats[0] = np.repeat(feats[0], 3, axis=3)
        case 2:
            feats[2] = feats[2][:, :, :0]
        case 3:
            feats.pop()


WRONG = [
    *(("cls", value) for value in (*NOT_FINITE, 1e30, -1.0, 1.9, float(NUM_CLASSES))),
    *(("batch_idx", value) for value in (*NOT_FINITE, 1e30, -1.0, 0.9, float(MOST_IMAGES))),
    *(("bboxes", value) for value in (*NOT_FINITE, 64.0, 1e30, -3.0)),
]

SPOILERS: dict[str, list[Callable[[np.random.Generator, list[Array], Columns], None]]] = {
    "not finite": [_not_finite_logits],
    "lost anchors": [_lost_anchors, _not_finite_logits],
    "degenerate": [_degenerate_boxes],
    "empty": [_no_boxes],
    "huge": [_huge_logits],
    "many": [_many_boxes, _degenerate_boxes],
    "ties": [_constant_maps, _degenerate_boxes],
    "wrong": [_wrong_columns],
    "wrong maps": [_wrong_maps],
    "mixed": [_many_boxes, _degenerate_boxes, _constant_maps, _lost_anchors, _not_finite_logits],
}
