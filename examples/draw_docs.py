"""Draws the pictures of docs/mathematics.md: ``python -m examples.draw_docs``.

Every number comes from ``yolo_loss``: the committed sample's maps and boxes, and boxes made for CIoU and for ties.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from examples.dataset import load_pictures, load_sample
from yolo_loss import DetectionLoss, TaskAlignedAssigner, bbox2dist, ciou, decode, make_anchors, xywh2xyxy

NUM_CLASSES, REG_MAX, STRIDES = 1, 16, (8.0, 16.0, 32.0)
ALPHA, BETA, TOPK = 0.5, 6.0, 10
IMAGE, TREE = 0, 36  # of the sample; a tree with ten anchors of different quality
MARGIN = 14  # pixels shown around the tree
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "yolo-assigner", "font.size": 9, "axes.titlesize": 9}


class Tree(NamedTuple):
    """One ground truth of the sample with its candidate anchors, of which there are N.

    Attributes:
        box: (4,) pixel xyxy.
        points: (N, 2) anchor points, pixels.
        strides: (N,) pixels per cell.
        iou: (N,) u, CIoU of the predicted box and the tree, at least 0.
        score: (N,) s, probability of the class.
        metric: (N,) t.
        weights: (N,) normalized alignment score; 0 where the anchor was not assigned.
        distri: (N, 4, R) logits of the box distribution.
    """

    box: Tensor
    points: Tensor
    strides: Tensor
    iou: Tensor
    score: Tensor
    metric: Tensor
    weights: Tensor
    distri: Tensor


def load_tree() -> Tree:
    """The tree, from the sample's maps."""
    sample = load_sample()
    feats = [torch.from_numpy(feat) for feat in sample.feats]
    batch = {name: torch.from_numpy(values) for name, values in sample.batch.items()}
    flat = torch.cat([feat.flatten(2) for feat in feats], dim=2)[IMAGE]  # (4R + C, A)
    points, strides = make_anchors(feats, STRIDES)
    boxes = decode(flat[None, : 4 * REG_MAX], points, REG_MAX)[0] * strides  # (A, 4)
    own = batch["bboxes"][batch["batch_idx"] == IMAGE]
    box = xywh2xyxy(own * sample.image_size[0])[TREE]
    pixels = points * strides
    inside = bbox2dist(pixels, box).amin(dim=-1) > 1e-9  # (A,)
    iou = ciou(box, boxes).clamp(min=0.0)
    score = flat[4 * REG_MAX].sigmoid()
    assignment = DetectionLoss(NUM_CLASSES, STRIDES, REG_MAX).evaluate(feats, batch).assignment
    ours = assignment.fg_mask[IMAGE] & (assignment.target_gt_idx[IMAGE] == TREE)
    weights = torch.where(ours, assignment.target_weights[IMAGE], 0.0)
    distri = flat[: 4 * REG_MAX].T.reshape(-1, 4, REG_MAX)
    columns = (pixels, strides[:, 0], iou, score, score**ALPHA * iou**BETA, weights, distri)
    return Tree(box, *(column[inside] for column in columns))


def draw_assignment(tree: Tree) -> Figure:
    """Score, IoU, metric and weight of every candidate of one tree, over the photograph."""
    figure = Figure(figsize=(9, 2.7), layout="constrained")
    size = load_sample().image_size[0]
    photograph = load_pictures(size)[IMAGE].transpose(1, 2, 0)
    x1, y1, x2, y2 = (int(side) for side in tree.box)
    left, top, right, bottom = x1 - MARGIN, y1 - MARGIN, x2 + MARGIN, y2 + MARGIN
    columns = {
        "score s": tree.score,
        "IoU u": tree.iou,
        "t = s^0.5 u^6, scaled": tree.metric / tree.metric.max(),
        "weight of the assigned": tree.weights,
    }
    for axes, (title, values) in zip(figure.subplots(1, 4), columns.items(), strict=True):
        axes.imshow(photograph[top:bottom, left:right], extent=(left, right, bottom, top), alpha=0.35)
        _box(axes, tree.box)
        shown = values > 0
        x, y = tree.points[shown].T.numpy()
        dots = axes.scatter(
            x,
            y,
            c=values[shown].numpy(),
            s=2.5 * tree.strides[shown].numpy(),
            cmap="viridis",
            vmin=0.0,
            vmax=1.0,
            edgecolors="black",
            linewidths=0.5,
        )
        axes.set(title=f"{title} ({int(shown.sum())})", xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    figure.colorbar(dots, ax=figure.axes, shrink=0.85)
    return figure


def draw_ciou() -> Figure:
    """IoU and CIoU of a box of 40 x 40 pixels while another moves away, and while another changes its shape."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    moved, shaped = figure.subplots(1, 2, sharey=True)
    one = torch.tensor([0.0, 0.0, 40.0, 40.0])
    shifts = torch.linspace(0, 80, 161)
    others = one + torch.stack((shifts, torch.zeros_like(shifts)) * 2, dim=-1)
    _curves(moved, shifts, one, others)
    moved.set(title="a box of the same size, moved to the right", xlabel="pixels", ylabel="with a box of 40 x 40")
    ratios = torch.linspace(1, 8, 141)
    half = torch.stack((20 * ratios.sqrt(), 20 / ratios.sqrt()), dim=-1)
    _curves(shaped, ratios, one, torch.cat((20 - half, 20 + half), dim=-1))
    shaped.set(title="a box of the same centre and area, stretched", xlabel="width / height")
    shaped.legend(frameon=False)
    return figure


def _curves(axes: Axes, places: Tensor, one: Tensor, others: Tensor) -> None:
    sides = (torch.minimum(one[2:], others[:, 2:]) - torch.maximum(one[:2], others[:, :2])).clamp(min=0)
    inter, areas = sides.prod(-1), (others[:, 2:] - others[:, :2]).prod(-1) + 1600
    complete, x = ciou(one, others), places.numpy()
    axes.plot(x, (inter / (areas - inter)).numpy(), label="IoU", linestyle="--")
    axes.plot(x, complete.numpy(), label="CIoU")
    axes.plot(x, complete.clamp(min=0).numpy(), label="u = max(CIoU, 0)", linewidth=4, alpha=0.3)
    axes.axhline(0, color="grey", linewidth=0.5)


def draw_distribution(tree: Tree) -> Figure:
    """The four distributions of the tree's best anchor, with the two bins that each is pulled to."""
    best = int(tree.weights.argmax())
    stride = tree.strides[best]
    targets = bbox2dist(tree.points[best] / stride, tree.box / stride, REG_MAX)  # (4,)
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    bins = torch.arange(REG_MAX)
    for side, axes in enumerate(figure.subplots(1, 4, sharey=True)):
        probabilities = tree.distri[best, side].softmax(-1)
        target = float(targets[side])
        two_hot = (1 - (bins - target).abs()).clamp(min=0)
        axes.bar(bins.numpy(), probabilities.numpy(), color="tab:blue", label="probability of the bin")
        axes.plot(bins.numpy(), two_hot.numpy(), "k_", markersize=9, label="target probability")
        axes.axvline(float((probabilities * bins).sum()), color="tab:blue", linestyle=":", label="expected distance")
        axes.axvline(target, color="tab:red", label="target distance")
        name = ("left", "top", "right", "bottom")[side]
        axes.set(title=f"{name}: target {target:.2f}", xlabel=f"cells of {stride:.0f} pixels", xlim=(-0.7, 8.7))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw_ties() -> Figure:
    """Anchors of equal metric: the chosen ones have the smallest indices."""
    rows = 4
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(rows), indexing="xy"), dim=-1)
    points = grid.reshape(-1, 2) * 8.0 + 4.0
    box = torch.tensor([[[0.0, 0.0, 32.0, 32.0]]])
    assigner = TaskAlignedAssigner(topk=TOPK, num_classes=1, alpha=ALPHA, beta=BETA)
    truth = torch.zeros(1, 1, 1), box, torch.ones(1, 1, 1)
    result = assigner(torch.full((1, rows**2, 1), 0.5), box.expand(1, rows**2, 4), points, *truth)
    figure = Figure(figsize=(2.9, 2.9), layout="constrained")
    axes = figure.subplots()
    _box(axes, box[0, 0])
    chosen = result.fg_mask[0]
    for mask, colour, label in ((chosen, "tab:green", "chosen"), (~chosen, "lightgrey", "not chosen")):
        x, y = points[mask].T.numpy()
        axes.scatter(x, y, s=240, c=colour, label=label)
    for index, place in enumerate(points.tolist()):
        axes.text(place[0], place[1], str(index), ha="center", va="center")
    axes.set(xlim=(-2, 34), ylim=(34, -2), xticks=[], yticks=[], title=f"16 equal metrics, k = {TOPK}", aspect="equal")
    return figure


def _box(axes: Axes, box: Tensor) -> None:
    x1, y1, x2, y2 = box.tolist()
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="tab:red", linewidth=1.5))


def main() -> int:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(prog="python -m examples.draw_docs", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="folder of the pictures")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, Any] = {"Date": None}  # the same file from the same numbers
    with mpl.rc_context(STYLE):
        tree = load_tree()
        figures = {"ciou": draw_ciou(), "dfl": draw_distribution(tree), "ties": draw_ties()}
        for name, figure in figures.items():
            figure.savefig(out / f"{name}.svg", metadata=metadata)
        draw_assignment(tree).savefig(out / "candidates.jpg", dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
