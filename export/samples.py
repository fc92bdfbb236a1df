"""Seeded inputs that resemble a detector's: some boxes are predicted well, most anchors see background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from yolo_assigner.export.contract import DETECTOR_KINDS
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.specs import extra_input_specs
from yolo_loss import GroundTruth, make_anchors, xyxy2xywh

PADDING_SHARE, NO_AREA_SHARE, SHAKEN_SHARE = 0.25, 0.03, 0.5
# Rows and columns of random brightness that an image is interpolated from, and the amplitude of its pixel noise.
PATCHES, NOISE = (6, 8), 0.1
# Pixels in x and y between the points of one set and of the next.
SET_SHIFT = (3.0, 5.0)
# The maps of a one-to-one branch have another seed.
BRANCH_SEEDS = 1000


class Case(NamedTuple):
    """Sizes of a batch.

    Attributes:
        batch: B.
        slots: M.
        grids: (H_i, W_i) of each level.
        num_classes: C.
        weak: Whether predicted boxes are so small that every IoU is near 0.
        regions: I, where the model takes regions to ignore.
        point_sets: S, sets of anchor points of an assigner: one for each image, or 1 for all; 0: points (A, 2).
    """

    batch: int
    slots: int
    grids: tuple[tuple[int, int], ...]
    num_classes: int
    weak: bool = False
    regions: int = 2
    point_sets: int = 0


def pyramid(height: int, width: int, strides: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Return the (H_i, W_i) of each level for an image of (height, width) pixels."""
    return tuple((max(int(height // stride), 1), max(int(width // stride), 1)) for stride in strides)


def sample_ground_truth(case: Case, image_size: tuple[float, float], generator: torch.Generator) -> GroundTruth:
    """Sample boxes of all sizes; some reach outside the image, some have no area, about a quarter is padding."""
    shape = (case.batch, case.slots, 1)
    height, width = image_size
    size = torch.tensor((width, height))
    centre = torch.rand((*shape[:2], 2), generator=generator) * size
    side = size * torch.rand((*shape[:2], 2), generator=generator).square() * 0.7
    side = side * (torch.rand(shape, generator=generator) > NO_AREA_SHARE)
    labels = torch.randint(case.num_classes, shape, generator=generator)
    mask = torch.rand(shape, generator=generator) > PADDING_SHARE
    boxes = torch.cat((centre - side / 2, centre + side / 2), dim=-1) * mask
    return GroundTruth(labels * mask, boxes, mask)


def ragged_batch(ground_truth: GroundTruth, image_size: tuple[float, float]) -> dict[str, Tensor]:
    """Convert padded ground truth to a training batch: ``batch_idx``, ``cls``, normalized ``bboxes``."""
    images, slots = torch.nonzero(ground_truth.mask_gt.squeeze(-1), as_tuple=True)
    height, width = image_size
    boxes = ground_truth.gt_bboxes[images, slots]
    scale = torch.tensor((width, height, width, height), dtype=boxes.dtype)
    labels = ground_truth.gt_labels[images, slots].float()  # (T, 1), as data loaders give it
    return {"batch_idx": images.float(), "cls": labels, "bboxes": xyxy2xywh(boxes) / scale}


def sample_assigner_inputs(case: Case, strides: Sequence[float], seed: int) -> tuple[Tensor, ...]:
    """Sample the assigner's inputs in float32; half of the predicted boxes are ground-truth boxes plus noise.

    Anchor points are (A, 2), or (S, A, 2) where the case says so.
    """
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.empty((1, 1, *grid)) for grid in case.grids]
    points, stride = make_anchors(maps, strides)
    points = points * stride
    height, width = case.grids[0][0] * strides[0], case.grids[0][1] * strides[0]
    ground_truth = sample_ground_truth(case, (height, width), generator)
    anchors = points.shape[0]
    own = points
    if case.point_sets:
        points = points + torch.arange(case.point_sets)[:, None, None] * torch.tensor(SET_SHIFT)
        own = points[torch.arange(case.batch).clamp(max=case.point_sets - 1)]  # (B, A, 2)
    scores = torch.rand((case.batch, anchors, case.num_classes), generator=generator).square()
    reach = torch.rand((case.batch, anchors, 4), generator=generator)
    reach = stride * (0.3 * reach if case.weak else 0.5 + 5 * reach)
    boxes = torch.cat((own - reach[..., :2], own + reach[..., 2:]), dim=-1)
    if case.slots and not case.weak:
        slot = torch.randint(case.slots, (case.batch, anchors), generator=generator)
        images = torch.arange(case.batch)[:, None]
        shaken = ground_truth.gt_bboxes[images, slot] + stride * torch.randn(boxes.shape, generator=generator) * 0.5
        boxes = torch.where(torch.rand((case.batch, anchors, 1), generator=generator) < SHAKEN_SHARE, shaken, boxes)
    return scores, boxes, points, *ground_truth


def sample_loss_inputs(
    case: Case, strides: Sequence[float], reg_max: int, seed: int
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Sample the loss's inputs in float32: raw maps and padded ground truth."""
    generator = torch.Generator().manual_seed(seed)
    channels = 4 * reg_max + case.num_classes
    feats = [torch.randn((case.batch, channels, *grid), generator=generator) * 2 for grid in case.grids]
    if case.weak:
        # Raise the first bin of each side, which is distance 0.
        lift = torch.zeros(channels).index_fill(0, torch.arange(4) * reg_max, 9.0)
        feats = [feat + lift[:, None, None] for feat in feats]
    if reg_max == 1:
        feats = [torch.cat((feat[:, :4].abs() + 0.5, feat[:, 4:]), dim=1) for feat in feats]
    height, width = case.grids[0][0] * strides[0], case.grids[0][1] * strides[0]
    return feats, *sample_ground_truth(case, (height, width), generator)


def sample_detector_inputs(case: Case, strides: Sequence[float], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample a detector's inputs in float32: images of smooth patches with noise, and padded ground truth."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (int(cells * strides[0]) for cells in case.grids[0])
    patches = torch.rand((case.batch, 3, *PATCHES), generator=generator)
    smooth = nn.functional.interpolate(patches, size=(height, width), mode="bilinear")
    noise = torch.randn(smooth.shape, generator=generator) * NOISE
    return (smooth + noise).clamp(0.0, 1.0), *sample_ground_truth(case, (height, width), generator)


def sample_inputs(
    kind: str, hyperparameters: Hyperparameters, case: Case, seed: int
) -> Sequence[Tensor | list[Tensor]]:
    """Sample the inputs of a model kind in the graph's order; the raw maps are a list."""
    strides = hyperparameters.strides
    if kind == "assigner":
        return sample_assigner_inputs(case, strides, seed)
    further = sample_extra_inputs(hyperparameters, case, seed)
    if kind in DETECTOR_KINDS:
        return *sample_detector_inputs(case, strides, seed), *further
    return *sample_loss_inputs(case, strides, hyperparameters.reg_max, seed), *further


def sample_behind_maps(hyperparameters: Hyperparameters, case: Case, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Sample what follows a detector's maps: the maps of all branches; ground truth and further inputs."""
    strides, reg_max = hyperparameters.strides, hyperparameters.reg_max
    maps, *truth = sample_loss_inputs(case, strides, reg_max, seed)
    if hyperparameters.end_to_end:
        maps = [*maps, *sample_loss_inputs(case, strides, reg_max, seed + BRANCH_SEEDS)[0]]
    return maps, [*truth, *sample_extra_inputs(hyperparameters, case, seed)]


def sample_extra_inputs(hyperparameters: Hyperparameters, case: Case, seed: int) -> list[Tensor]:
    """Sample what follows the ground truth: weights of which a quarter is 0, and regions like ground-truth boxes."""
    generator = torch.Generator().manual_seed(seed + 1)
    weights = torch.rand((case.batch, case.num_classes), generator=generator) * 2 - 0.5
    strides = hyperparameters.strides
    height, width = case.grids[0][0] * strides[0], case.grids[0][1] * strides[0]
    _, boxes, mask = sample_ground_truth(case._replace(slots=case.regions), (height, width), generator)
    values = {"class_weights": weights.clamp(min=0.0), "ignore_bboxes": boxes, "mask_ignore": mask}
    return [values[spec.name] for spec in extra_input_specs(hyperparameters)]
