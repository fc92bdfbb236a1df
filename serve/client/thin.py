"""Requests for an assignment with only what can matter, and full targets from their replies.

Only an anchor inside a valid box of its image can become foreground, and only the scores of the classes of its image's
boxes are read. So an image is sent with these anchors, in their order, and with these classes, renumbered. The model
decides about them as about all: each decision concerns one image, takes its candidates in the order of their
anchors, and reads no other score. Where the model takes the points of each image, one request can hold all images
without sending an anchor of another: images with fewer anchors are filled up with points that lie in none of their
boxes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from yolo_assigner.serve.detection.results import COMPACT, Array, GroundTruth
from yolo_loss.checks import MAX_COORDINATE

ENGINE_PLATFORM = "tensorrt_plan"
# Pixels by which boxes that the model enlarges are enlarged more here: an anchor too many changes nothing.
MARGIN = 1e-3
# Cells of the table of rows and columns, per point, up to which it is made: for points of a few levels it has one or
# two, for arbitrary points as many as there are points.
CELLS_PER_POINT = 8
# Pixels between the points that fill up an image; models skip points in equal steps as one row.
FILLING_STEP = np.float32(1 / 16)
POINTS_AXES = ("S", "A", 2)  # of models that take the points of each image


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
        own_points: Whether it takes the anchor points of each image.
    """

    min_box_side: float | None
    own_points: bool = False


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
    """One request: some images with the anchors that they need, n of all together.

    Attributes:
        image: (n,) int64, the image of the batch.
        anchor: (n,) int64, among all anchors.
        row: (n,) int64, the image of the request, ascending.
        column: (n,) int64, among the anchors of the request.
        inputs: The model's inputs.
    """

    image: Array
    anchor: Array
    row: Array
    column: Array
    inputs: dict[str, Array]

    @property
    def images(self) -> int:
        """Images of the request."""
        return len(self.inputs["pd_scores"])


def read_options(config: bytes) -> ModelOptions | None:
    """Read a model's options from the reply of its ``config``.

    Returns:
        None where it does not say them, as other servers do not, or where the model is an engine of TensorRT: an engine
        takes no fewer anchors than it was built for.
    """
    try:
        document = json.loads(config)
        side = json.loads(document["parameters"]["min_box_side"]["string_value"])
        options = ModelOptions(None if side is None else float(side), takes_sets(config))
        return None if document["platform"] == ENGINE_PLATFORM else options
    except (ValueError, KeyError, TypeError):
        return None


def takes_sets(config: bytes) -> bool:
    """Whether a model takes sets of anchor points, (S, A, 2), by the reply of its ``config``; False where unknown."""
    try:
        axes = {row["name"]: len(row["dims"]) for row in json.loads(config)["input"]}
        return axes.get("anc_points") == len(POINTS_AXES)
    except (ValueError, KeyError, TypeError):
        return False


def find_needed(points: Array, truth: GroundTruth, min_box_side: float | None) -> Needed:
    """Find the anchors and classes that can matter.

    Args:
        points: (A, 2) or (B, A, 2) float32, pixels.
        truth: Padded ground truth.
        min_box_side: The model's hyper-parameter.
    """
    areas = enlarge(truth.gt_bboxes, min_box_side), truth.mask_gt[..., 0] != 0
    if points.shape[:-2]:
        inside = np.concatenate([covered(of_image[0], *rest) for of_image, *rest in _each_image(points, *areas)])
    else:
        inside = covered(points, *areas)
    image, anchor = np.divmod(np.flatnonzero(inside), inside.shape[1])  # faster than indices by axis
    found = [np.unique(labels[valid != 0]) for labels, valid in zip(truth.gt_labels, truth.mask_gt, strict=True)]
    sizes = np.array([len(classes) for classes in found], np.int64)
    table = np.zeros((len(found), max(sizes.max(), 1)), np.int64)
    places = np.zeros(truth.gt_labels.shape, np.int64)
    for row, classes in enumerate(found):
        table[row, : len(classes)] = classes
        valid = truth.mask_gt[row] != 0
        places[row][valid] = np.searchsorted(classes, truth.gt_labels[row][valid])
    return Needed(image, anchor, inside.sum(axis=1), table, sizes, places)


def _each_image(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    for image in range(len(arrays[0])):
        yield tuple(array[image : image + 1] for array in arrays)


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
    return (cells > 0).reshape(len(boxes), -1).take(row * len(x) + column, axis=1)


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


def divide(
    picked: ScoresAndBoxes,
    points: Array,
    truth: GroundTruth,
    needed: Needed,
    request_bytes: int,
    options: ModelOptions,
) -> list[Part]:
    """Divide what is needed into requests: one for each image, or one for all.

    One for all sends more: each image has as many anchors and classes as any, and where the model takes only points of
    all images, the anchors of all.

    Args:
        picked: (N, K) scores and (N, 4) boxes of the needed anchors.
        points: (A, 2) or (B, A, 2) pixels.
        truth: Padded ground truth.
        needed: As found for these.
        request_bytes: What a further request costs beside its bytes, in bytes that take as long.
        options: The model's.

    Returns:
        The requests, of images with any anchor.
    """
    images = np.flatnonzero(needed.counts)
    if not len(images):
        return []
    widths, counts = needed.num_classes[images] + 6, needed.counts[images]  # with four sides and a point
    apart = 4 * (counts * widths).sum() + len(images) * request_bytes
    anchors = counts.max() if options.own_points else len(np.unique(needed.anchor))
    together = 4 * anchors * len(images) * widths.max() + request_bytes
    single = points.shape[:-2] and not options.own_points
    groups = np.split(images, len(images)) if single or apart < together else [images]
    return [_part(picked, points, truth, needed, group, options) for group in groups]


def _part(
    picked: ScoresAndBoxes, points: Array, truth: GroundTruth, needed: Needed, images: Array, options: ModelOptions
) -> Part:
    counts, ends = needed.counts[images], needed.counts.cumsum()[images]
    of_images = [slice(*ends_of) for ends_of in zip(ends - counts, ends, strict=True)]
    anchors = [needed.anchor[rows] for rows in of_images]
    slots = 1 + np.flatnonzero(truth.mask_gt[images].any(axis=(0, 2)))[-1]
    part_truth = GroundTruth(
        needed.labels[images, :slots], truth.gt_bboxes[images, :slots], truth.mask_gt[images, :slots]
    )
    own = [
        (points[image] if points.shape[:-2] else points).take(some, axis=0)
        for image, some in zip(images, anchors, strict=True)
    ]
    if options.own_points:
        columns, part_points = [np.arange(count) for count in counts], _filled_up(own, part_truth, options.min_box_side)
    else:
        union = np.unique(np.concatenate(anchors))
        columns = [np.searchsorted(union, some) for some in anchors]
        part_points = points[union] if len(images) > 1 else own[0]
    # Anchors that only other images need are no candidates of this one, whatever is sent for them.
    shape, classes = (len(images), part_points.shape[-2]), needed.num_classes[images].max()
    scores, boxes = np.zeros((*shape, classes), picked.scores.dtype), np.zeros((*shape, 4), np.float32)
    for row, (column, rows) in enumerate(zip(columns, of_images, strict=True)):
        place: Any = slice(len(column)) if options.own_points else column  # a slice is several times as fast
        scores[row, place], boxes[row, place] = picked.scores[rows, :classes], picked.boxes[rows]
    inputs = {"pd_scores": scores, "pd_bboxes": boxes, "anc_points": part_points, **part_truth._asdict()}
    contiguous = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    rows_of_all = np.repeat(np.arange(len(images)), counts)
    return Part(np.repeat(images, counts), np.concatenate(anchors), rows_of_all, np.concatenate(columns), contiguous)


def _filled_up(own: Sequence[Array], truth: GroundTruth, min_box_side: float | None) -> Array:
    """Points (b, a, 2): those of each image, then points above all its valid boxes, in a row of equal steps."""
    tops = enlarge(truth.gt_bboxes, min_box_side)[..., 1:2]
    top = np.where(truth.mask_gt, tops, np.inf).min(axis=(1, 2))
    points = np.empty((len(own), max(map(len, own)), 2), np.float32)
    points[..., 0] = np.arange(points.shape[1]) * FILLING_STEP
    points[..., 1] = np.nan_to_num(np.floor(top) - 1).clip(-MAX_COORDINATE, MAX_COORDINATE)[:, None]
    for row, values in enumerate(own):
        points[row, : len(values)] = values
    return points


def halve(part: Part) -> list[Part]:
    """Divide a request of several images into two."""
    middle = part.images // 2
    halves = []
    for begin, end in ((0, middle), (middle, part.images)):
        chosen = (part.row >= begin) & (part.row < end)
        inputs = {
            name: array if array.ndim < len(POINTS_AXES) else array[begin:end] for name, array in part.inputs.items()
        }
        image, anchor, row, column = (field[chosen] for field in part[:4])
        halves.append(Part(image, anchor, row - begin, column, inputs))
    return halves


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
        place = part.image * shape[1] + part.anchor
        source = part.row * part.inputs["pd_scores"].shape[1] + part.column
        for name, array in targets.items():
            array.reshape(-1)[place] = reply[name].reshape(-1)[source]
    return targets
