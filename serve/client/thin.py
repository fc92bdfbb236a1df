"""Requests for an assignment with only what can matter, and full targets from their replies.

Only an anchor inside a valid box of its image can become foreground, and only the scores of the classes of its image's
boxes are read. So an image is sent with these anchors, in their order, and with these classes, renumbered. The model
decides about them as about all: each decision concerns one image, takes its candidates in the order of their
anchors, and reads no other score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from yolo_assigner.serve.detection.results import COMPACT, Array, GroundTruth

ENGINE_PLATFORM = "tensorrt_plan"
# Pixels by which boxes that the model enlarges are enlarged more here: an anchor too many changes nothing.
MARGIN = 1e-3
# Cells of the table of rows and columns, per point, up to which it is made: for points of a few levels it has one or
# two, for arbitrary points as many as there are points.
CELLS_PER_POINT = 8


class ScoresAndBoxes(NamedTuple):
    """Decoded predictions.

    Attributes:
        scores: (..., C) or (..., K) probabilities.
        boxes: (..., 4) pixel xyxy.
    """

    scores: Array
    boxes: Array


class ModelOptions(NamedTuple):
    """What decides which anchors a model takes for candidates.

    Attributes:
        min_box_side: Its hyper-parameter, pixels.
    """

    min_box_side: float | None


class Needed(NamedTuple):
    """What of a batch's predictions is needed; N anchors of all images together.

    Attributes:
        image: (N,) int64, ascending.
        anchor: (N,) int64, ascending within an image.
        counts: (B,) int64, anchors of each image.
        classes: (B, K) int64, the classes of each image's valid boxes, ascending, filled up with class 0.
        num_classes: (B,) int64, how many of them are not filling.
        labels: (B, M, 1) int64, places of the boxes' classes among those of their image; 0 for slots without a box.
    """

    image: Array
    anchor: Array
    counts: Array
    classes: Array
    num_classes: Array
    labels: Array


class Part(NamedTuple):
    """One request: some images, with the anchors that any of them needs.

    Attributes:
        images: (b,) int64.
        anchors: (a,) int64.
        inputs: The model's inputs.
    """

    images: Array
    anchors: Array
    inputs: dict[str, Array]


def read_options(config: bytes) -> ModelOptions | None:
    """Read a model's options from the reply of its ``config``.

    Returns:
        None where it does not say them, as other servers do not, or where the model is an engine of TensorRT: an engine
        takes no fewer anchors than it was built for.
    """
    try:
        document = json.loads(config)
        side = json.loads(document["parameters"]["min_box_side"]["string_value"])
        return None if document["platform"] == ENGINE_PLATFORM else ModelOptions(None if side is None else float(side))
    except (ValueError, KeyError, TypeError):
        return None


def find_needed(points: Array, truth: GroundTruth, min_box_side: float | None) -> Needed:
    """Find the anchors and classes that can matter.

    Args:
        points: (A, 2) float32, pixels.
        truth: Padded ground truth.
        min_box_side: The model's hyper-parameter.
    """
    inside = covered(points, enlarge(truth.gt_bboxes, min_box_side), truth.mask_gt[..., 0] != 0)
    image, anchor = np.nonzero(inside)
    found = [np.unique(labels[valid != 0]) for labels, valid in zip(truth.gt_labels, truth.mask_gt, strict=True)]
    sizes = np.array([len(classes) for classes in found], np.int64)
    table = np.zeros((len(found), max(sizes.max(), 1)), np.int64)
    places = np.zeros(truth.gt_labels.shape, np.int64)
    for row, classes in enumerate(found):
        table[row, : len(classes)] = classes
        valid = truth.mask_gt[row] != 0
        places[row][valid] = np.searchsorted(classes, truth.gt_labels[row][valid])
    return Needed(image, anchor, inside.sum(axis=1), table, sizes, places)


def covered(points: Array, boxes: Array, valid: Array) -> Array:
    """Whether each point lies inside a valid box of each image.

    Args:
        points: (A, 2) pixels.
        boxes: (B, M, 4) pixel xyxy.
        valid: (B, M) bool.

    Returns:
        (B, A) bool.
    """
    x, column = np.unique(points[:, 0], return_inverse=True)
    y, row = np.unique(points[:, 1], return_inverse=True)
    if len(x) * len(y) > CELLS_PER_POINT * len(points):
        return _covered_one_by_one(points, boxes, valid)
    # A cell of the table is covered by as many boxes as have its row and its column inside.
    columns = (x > boxes[..., :1]) & (x < boxes[..., 2:3])  # (B, M, X)
    rows = (y > boxes[..., 1:2]) & (y < boxes[..., 3:]) & valid[..., None]  # (B, M, Y)
    cells = rows.swapaxes(1, 2).astype(np.float32) @ columns.astype(np.float32)  # (B, Y, X)
    return np.asarray((cells > 0).reshape(len(boxes), -1)[:, row * len(x) + column])


def _covered_one_by_one(points: Array, boxes: Array, valid: Array) -> Array:
    inside = np.zeros((len(boxes), len(points)), np.bool_)
    x, y = points.T
    for image, slot in np.argwhere(valid):
        x1, y1, x2, y2 = boxes[image, slot]
        inside[image] |= (x > x1) & (x < x2) & (y > y1) & (y < y2)
    return inside


def enlarge(boxes: Array, min_side: float | None) -> Array:
    """Enlarge sides below ``min_side`` to a little more than it, about the box's centre.

    Args:
        boxes: (..., 4) float32, pixel xyxy.
        min_side: Pixels; None: boxes stay as they are.
    """
    if min_side is None:
        return boxes
    low, high = boxes[..., :2], boxes[..., 2:]
    half = np.float32(min_side / 2 + MARGIN)
    with np.errstate(invalid="ignore", over="ignore"):  # padding may hold anything
        small, centre = high - low < min_side, (low + high) / 2
    return np.concatenate((np.where(small, centre - half, low), np.where(small, centre + half, high)), axis=-1)


def divide(picked: ScoresAndBoxes, points: Array, truth: GroundTruth, needed: Needed, request_bytes: int) -> list[Part]:
    """Divide what is needed into requests: one for each image, or one for all.

    The points of a request are those of all its images. So one for all sends more, and is faster where images are small
    or alike.

    Args:
        picked: (N, K) scores and (N, 4) boxes of the needed anchors.
        points: (A, 2) pixels.
        truth: Padded ground truth.
        needed: As found for these.
        request_bytes: What a further request costs beside its bytes, in bytes that take as long.

    Returns:
        The requests, of images with any anchor.
    """
    images = np.flatnonzero(needed.counts)
    if not len(images):
        return []
    widths = needed.num_classes[images] + 4
    apart = 4 * (needed.counts[images] * widths).sum() + len(images) * request_bytes
    together = 4 * len(np.unique(needed.anchor)) * len(images) * widths.max() + request_bytes
    groups = np.split(images, len(images)) if apart < together else [images]
    return [_part(picked, points, truth, needed, group) for group in groups]


def _part(picked: ScoresAndBoxes, points: Array, truth: GroundTruth, needed: Needed, images: Array) -> Part:
    ends = needed.counts.cumsum()[images]
    rows = np.concatenate([np.arange(*ends_of) for ends_of in zip(ends - needed.counts[images], ends, strict=True)])
    anchors, place = np.unique(needed.anchor[rows], return_inverse=True)
    position = np.searchsorted(images, needed.image[rows])
    classes = needed.num_classes[images].max()
    # Anchors that only other images need are no candidates of this one, whatever is sent for them.
    part_scores = np.zeros((len(images), len(anchors), classes), picked.scores.dtype)
    part_boxes = np.zeros((len(images), len(anchors), 4), np.float32)
    part_scores[position, place] = picked.scores[rows, :classes]
    part_boxes[position, place] = picked.boxes[rows]
    slots = 1 + np.flatnonzero(truth.mask_gt[images].any(axis=(0, 2)))[-1]
    inputs = {
        "pd_scores": part_scores,
        "pd_bboxes": part_boxes,
        "anc_points": points[anchors],
        "gt_labels": needed.labels[images, :slots],
        "gt_bboxes": truth.gt_bboxes[images, :slots],
        "mask_gt": truth.mask_gt[images, :slots],
    }
    return Part(images, anchors, {name: np.ascontiguousarray(array) for name, array in inputs.items()})


def join(parts: Sequence[Part], replies: Sequence[Mapping[str, Array]], shape: tuple[int, int]) -> dict[str, Array]:
    """Put the targets of requests into those of the whole batch.

    Args:
        parts: The requests.
        replies: Their ``COMPACT`` outputs, (b, a) each.
        shape: B, A.

    Returns:
        The ``COMPACT`` outputs, (B, A) each; all other anchors are background.
    """
    targets = {name: np.zeros(shape, dtype) for name, dtype in zip(COMPACT, (bool, np.int64, np.float32), strict=True)}
    for part, reply in zip(parts, replies, strict=True):
        for name, array in targets.items():
            array[part.images[:, None], part.anchors] = reply[name]
    return targets
