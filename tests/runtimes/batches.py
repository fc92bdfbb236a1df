"""Seeded batches of other sizes than models are traced with, ordinary ones and those that runtimes fall over."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import Case, pyramid, sample_detector_inputs, sample_loss_inputs
from yolo_loss import GroundTruth, make_anchors

INF, NAN = float("inf"), float("nan")
GROUPS = ("ordinary", "candidate-less", "tied", "non-finite")
# Batches of more images have anchor points of each.
MOST_SHARING = 2
# Height and width in pixels.
SMALL, SQUARE, USUAL = (64, 96), (128, 128), (256, 320)


class Batch(NamedTuple):
    """Raw maps and padded ground truth, and pictures of the same size for a model that makes its own maps.

    Attributes:
        group: One of ``GROUPS``.
        name: What is special about it.
        case: Its sizes.
        feats: L maps.
        truth: Ground truth.
        images: (B, 3, H, W); None where the point of the batch lies in the maps.
    """

    group: str
    name: str
    case: Case
    feats: list[Tensor]
    truth: GroundTruth
    images: Tensor | None

    def inputs(self, kind: str, numbers: Hyperparameters) -> list[Tensor | list[Tensor]] | None:
        """Inputs of a model of this kind; None where it has no use for the batch."""
        if kind == "assigner":
            return [*_decoded(self.feats, numbers), *self.truth]
        if kind == "detector_loss":
            return None if self.images is None else [self.images, *self.truth]
        return [self.feats, *self.truth]


def _decoded(feats: list[Tensor], numbers: Hyperparameters) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (B, A, C), boxes (B, A, 4) in pixels and points (S, A, 2) of maps, as a training loop computes them."""
    points, strides = make_anchors(feats, numbers.strides)
    joined = torch.cat([feat.flatten(2) for feat in feats], dim=2).transpose(1, 2)  # (B, A, 4R + C)
    bins = joined[..., : 4 * numbers.reg_max].unflatten(2, (4, numbers.reg_max)).softmax(3)
    distances = bins @ torch.arange(numbers.reg_max, dtype=bins.dtype)  # (B, A, 4)
    boxes = torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=2) * strides
    sets = len(boxes) if len(boxes) > MOST_SHARING else 1
    return joined[..., 4 * numbers.reg_max :].sigmoid(), boxes, (points * strides).repeat(sets, 1, 1)


def all_batches(numbers: Hyperparameters) -> list[Batch]:
    """Every batch, for models of these hyper-parameters."""
    return [*_ordinary(numbers), *_candidate_less(numbers), *_tied(numbers), *_non_finite(numbers)]


def _sample(
    numbers: Hyperparameters, group: str, name: str, batch: int, slots: int, size: tuple[int, int] = USUAL
) -> Batch:
    case = Case(batch, slots, pyramid(*size, numbers.strides), numbers.num_classes)
    feats, *truth = sample_loss_inputs(case, numbers.strides, numbers.reg_max, seed=1)
    images, *_ = sample_detector_inputs(case, numbers.strides, seed=1)
    return Batch(group, name, case, feats, GroundTruth(*truth), images)


def _ordinary(numbers: Hyperparameters) -> list[Batch]:
    sizes = [("three images", 3, 7, USUAL), ("one image, one box", 1, 1, (32, 32)), ("120 boxes", 2, 120, USUAL)]
    return [_sample(numbers, "ordinary", *size) for size in sizes]


def _candidate_less(numbers: Hyperparameters) -> list[Batch]:
    def batch(name: str, slots: int, change: Callable[[GroundTruth], GroundTruth]) -> Batch:
        made = _sample(numbers, "candidate-less", name, 3, slots, SMALL)
        return made._replace(truth=change(made.truth))

    def boxes(*corners: float) -> Callable[[GroundTruth], GroundTruth]:
        return lambda truth: truth._replace(
            gt_bboxes=torch.tensor(corners).expand(truth.gt_bboxes.shape).clone(),
            mask_gt=torch.ones_like(truth.mask_gt),
        )

    return [
        batch("no slots", 0, lambda truth: truth),
        batch("no slot valid", 5, lambda truth: truth._replace(mask_gt=torch.zeros_like(truth.mask_gt))),
        batch("boxes outside", 2, boxes(9000.0, 9000.0, 9050.0, 9050.0)),
        batch("boxes between points", 2, boxes(5.0, 5.0, 7.0, 7.0)),
        # One of three images has candidates.
        batch("two images without", 5, lambda truth: truth._replace(mask_gt=_only_first(truth.mask_gt))),
    ]


def _only_first(mask: Tensor) -> Tensor:
    return torch.cat((torch.ones_like(mask[:1]), torch.zeros_like(mask[1:])))


def _tied(numbers: Hyperparameters) -> list[Batch]:
    """Equal numbers that are exact in float32, so that ties are ties in float64 too."""
    flat = _sample(numbers, "tied", "constant maps", 3, 4, SQUARE)
    corners = torch.tensor([(32, 32, 96, 96), (32, 32, 96, 96), (16, 32, 80, 96), (0, 0, 128, 128)]).float()
    truth = GroundTruth(
        torch.tensor([0, 0, 1, 1]).view(1, 4, 1).expand(3, 4, 1).clone(),
        corners.expand(3, 4, 4).clone(),
        torch.ones((3, 4, 1), dtype=torch.bool),
    )
    # softplus(20) is 20 in float32, so even long sums of it are exact.
    feats = [_classes_set(torch.zeros_like(feat), 20.0, numbers) for feat in flat.feats]
    flat = flat._replace(feats=feats, truth=truth, images=None)
    # A probability of 0 makes every metric 0.
    zero = flat._replace(name="all metrics 0", feats=[_classes_set(feat, -INF, numbers) for feat in flat.feats])
    same = _sample(numbers, "tied", "pairs of equal boxes", 3, 6)
    pairs = same.truth.gt_bboxes[:, :3].repeat_interleave(2, dim=1)
    everywhere = torch.ones_like(same.truth.mask_gt)
    return [flat, zero, same._replace(truth=GroundTruth(same.truth.gt_labels, pairs, everywhere))]


def _classes_set(feat: Tensor, value: float, numbers: Hyperparameters) -> Tensor:
    changed = feat.clone()
    changed[:, 4 * numbers.reg_max :] = value
    return changed


def _non_finite(numbers: Hyperparameters) -> list[Batch]:
    logit = 4 * numbers.reg_max
    made = []
    for value in (NAN, INF, -INF):
        batch = _sample(numbers, "non-finite", f"{value} class logits", 3, 7)
        # On background, for image 0 has no boxes; and on a candidate of a box of that class.
        batch.truth.mask_gt[0] = False
        batch.feats[0][0, logit, 5, 5] = value
        batch.truth.mask_gt[1, 0], batch.truth.gt_labels[1, 0] = True, 1
        batch.truth.gt_bboxes[1, 0] = torch.tensor([100.0, 80.0, 220.0, 180.0])
        batch.feats[1][1, logit + 1, 8, 10] = value
        made.append(batch._replace(images=None))
    infinite = _sample(numbers, "non-finite", "inf distribution on background", 3, 7)
    infinite.truth.mask_gt[0] = False
    infinite.feats[0][0, 3, 5, 5] = INF
    padded = _sample(numbers, "non-finite", "NaN box in padding", 3, 7)
    padded.truth.mask_gt[:, 5:] = False
    padded.truth.gt_bboxes[:, 5] = NAN
    padded.truth.gt_bboxes[:, 6] = INF
    return [*made, infinite._replace(images=None), padded]
