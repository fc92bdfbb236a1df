"""Named tuples that pass between the modules. Field names are the exported models' tensor names."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.execution.channels import Channels


class GroundTruth(NamedTuple):
    """Padded ground truth of a batch.

    Attributes:
        gt_labels: (B, M, 1) int64.
        gt_bboxes: (B, M, 4) pixel xyxy.
        mask_gt: (B, M, 1) bool, False on padding.
    """

    gt_labels: Tensor
    gt_bboxes: Tensor
    mask_gt: Tensor


class ClassInputs(NamedTuple):
    """What changes the class loss of a batch, and nothing else: not the assignment, nor the sum of target scores.

    Attributes:
        class_weights: (B, C), not negative: factors of every element of its class. 0 where a class is not annotated in
            an image: it adds nothing there and gets no gradient, whatever its logits are. None: all 1.
        ignore_bboxes: (B, I, 4) pixel xyxy: a background anchor whose centre lies inside has no class loss. None: no
            regions.
        mask_ignore: (B, I, 1) bool, False on padding; None together with ``ignore_bboxes``.
    """

    class_weights: Tensor | None = None
    ignore_bboxes: Tensor | None = None
    mask_ignore: Tensor | None = None


class Level(NamedTuple):
    """One level of a head's output. Both fields may be the same tensor, a raw map (B, 4R + C, A_i).

    Attributes:
        distri_source: (B, 4R or more, A_i), the first 4R channels are logits of the box distributions.
        scores_source: (B, C or more, A_i), the last C channels are class logits.
    """

    distri_source: Tensor
    scores_source: Tensor


class Predictions(NamedTuple):
    """The head's output without a copy: channels first, as the feature maps have it.

    Attributes:
        levels: One per map, or a single one when the head has joined them.
        anchor_points: (A, 2) grid units.
        strides: (A, 1) pixels per grid unit.
        grid_size: (H_0, W_0) cells of the first level.
        reg_max: R.
        num_classes: C.
    """

    levels: tuple[Level, ...]
    anchor_points: Tensor
    strides: Tensor
    grid_size: tuple[int, int]
    reg_max: int
    num_classes: int

    @property
    def side_scale(self) -> Tensor:
        """A grid unit of each anchor as a fraction of the image's width and height, (A, 2)."""
        height, width = self.grid_size
        first = self.strides[:1]
        return torch.cat((self.strides / (first * width), self.strides / (first * height)), dim=1)

    @property
    def pred_distri(self) -> list[Channels]:
        """Logits of the box distributions, 4R channels per level."""
        return [Channels(level.distri_source, 0, 4 * self.reg_max) for level in self.levels]

    @property
    def pred_scores(self) -> list[Channels]:
        """Class logits, C channels per level."""
        sources = [level.scores_source for level in self.levels]
        return [Channels(source, source.shape[1] - self.num_classes, self.num_classes) for source in sources]


class Assignment(NamedTuple):
    """An assignment in compact form. Labels, boxes and dense scores are looked up from it.

    Attributes:
        fg_mask: (B, A) bool, anchors that have a ground truth.
        target_gt_idx: (B, A) int64, slot of the ground truth; 0 on background.
        target_weights: (B, A) normalized alignment scores; 0 on background.
    """

    fg_mask: Tensor
    target_gt_idx: Tensor
    target_weights: Tensor


class AssignmentResult(NamedTuple):
    """The assigner's five outputs, in the order users of YOLO code unpack them.

    Attributes:
        target_labels: (B, A) int64, class of the assigned ground truth.
        target_bboxes: (B, A, 4) its box, pixel xyxy.
        target_scores: (B, A, C) one-hot(label) times the normalized alignment score; 0 on background.
        fg_mask: (B, A) bool, anchors that have a ground truth.
        target_gt_idx: (B, A) int64, slot of the ground truth; 0 on background.
    """

    target_labels: Tensor
    target_bboxes: Tensor
    target_scores: Tensor
    fg_mask: Tensor
    target_gt_idx: Tensor


class Gains(NamedTuple):
    """Weights of the three losses; the defaults are YOLOv8's. With R = 1 ``dfl`` is the weight of l1."""

    box: float = 7.5
    cls: float = 0.5
    dfl: float = 1.5


class ClippedSides(NamedTuple):
    """Sides of assigned boxes whose distance from the anchor is beyond the last of R bins, R - 1 - 0.01.

    Attributes:
        sides: () int64, how many. Some are ordinary early in a training, where large objects have anchors of fine
            levels, too.
        longest: () the longest such distance in pixels; 0 without any.
    """

    sides: Tensor
    longest: Tensor


class LossResult(NamedTuple):
    """The loss, the sums it was computed from, and the assignment.

    Attributes:
        loss: () sum of the three losses times B.
        loss_items: (3,) box, cls, dfl with their gains, before times B; detached. With R = 1 the third is l1.
        image_sums: (B, 4) per image, without gains, not normalised: box, cls, dfl or l1, and target-score sums.
        assignment: The targets in compact form.
        clipped: Sides of assigned boxes that are beyond the last bin; None with R = 1, in graphs, under
            ``torch.func``, and where they were not to be counted.
    """

    loss: Tensor
    loss_items: Tensor
    image_sums: Tensor
    assignment: Assignment
    clipped: ClippedSides | None = None
