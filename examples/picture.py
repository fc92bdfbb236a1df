"""The assignment as a picture: each photograph with its boxes and the anchors they won."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from examples.dataset import Sample, load_pictures
from yolo_assigner.serve.detection.results import LossResult

STRIDES = (8, 16, 32)
LARGEST_DOT = 60.0  # points squared, at a normalized alignment score of 1


def draw(sample: Sample, result: LossResult, path: Path) -> None:
    """Write the picture.

    Args:
        sample: The pictures' names and ground truth.
        result: With ``fg_mask``, ``target_gt_idx`` and ``target_weights``.
        path: PNG file to write.
    """
    height, width = sample.image_size
    photographs = load_pictures(height).transpose(0, 2, 3, 1)
    points = anchor_points(sample.feats)
    figure = Figure(figsize=(13, 7.3))
    figure.set_layout_engine("constrained", h_pad=0.12)
    for image, axes in enumerate(figure.subplots(1, 2)):
        axes.imshow(photographs[image], extent=(0, width, height, 0))
        boxes = pixel_boxes(sample, image)
        colours = colours_of(len(boxes))
        _draw_boxes(axes, boxes, colours)
        count = _draw_anchors(axes, points, result, image, colours)
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        axes.set_title(f"{sample.names[image]}: {len(boxes)} trees, {count} positive anchors")
    _legend(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def anchor_points(feats: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Centres of all cells (A, 2), pixels."""
    levels = []
    for feat, stride in zip(feats, STRIDES, strict=True):
        y, x = np.indices(feat.shape[2:])
        levels.append((np.stack((x, y), axis=-1).reshape(-1, 2) + 0.5) * stride)
    return np.concatenate(levels)


def pixel_boxes(sample: Sample, image: int) -> NDArray[Any]:
    """One image's ground truth (n, 4), x, y of the upper left corner, width, height in pixels."""
    height, width = sample.image_size
    rows = np.asarray(sample.batch["bboxes"], dtype=np.float64)[sample.batch["batch_idx"] == image]
    corner = rows[:, :2] - rows[:, 2:] / 2
    boxes: NDArray[Any] = np.concatenate((corner, rows[:, 2:]), axis=1) * np.array((width, height, width, height))
    return boxes


def colours_of(count: int) -> NDArray[Any]:
    """One colour per ground truth (count, 4); the golden ratio keeps those of neighbours apart."""
    colours: NDArray[Any] = mpl.colormaps["hsv"]((np.arange(count) * 0.618034) % 1.0)
    return colours


def _draw_boxes(axes: Axes, boxes: NDArray[Any], colours: NDArray[Any]) -> None:
    for (x, y, width, height), colour in zip(boxes, colours, strict=True):
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=1.3))


def _draw_anchors(axes: Axes, points: NDArray[Any], result: LossResult, image: int, colours: NDArray[Any]) -> int:
    mask, owner, weights = foreground(result)
    anchors = np.flatnonzero(mask[image])
    axes.scatter(
        points[anchors, 0],
        points[anchors, 1],
        s=np.maximum(LARGEST_DOT * weights[image, anchors], 2.0),
        c=colours[owner[image, anchors]],
        edgecolors="black",
        linewidths=0.4,
        zorder=3,
    )
    return len(anchors)


def foreground(result: LossResult) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """``fg_mask``, ``target_gt_idx`` and ``target_weights`` (B, A), which have to have been asked for."""
    if result.fg_mask is None or result.target_gt_idx is None or result.target_weights is None:
        raise ValueError("the result lacks targets; ask for outputs=('fg_mask', 'target_gt_idx', 'target_weights')")
    return result.fg_mask, result.target_gt_idx, result.target_weights


def _legend(figure: Figure) -> None:
    dots = [
        figure.axes[0].scatter([], [], s=LARGEST_DOT * score, c="white", edgecolors="black", label=f"{score:g}")
        for score in (0.1, 0.3, 0.6, 0.9)
    ]
    title = "anchor point, coloured by its ground truth (box), sized by normalized alignment score:"
    figure.legend(handles=dots, title=title, loc="outside lower center", ncols=4, frameon=False)
