"""The assigner as users of YOLO code know it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolo_loss.anchors import compute_dtype
from yolo_loss.channels import Channels, ClassScores
from yolo_loss.compilation import kernels_compiled, uncompiled
from yolo_loss.dense import assign_dense
from yolo_loss.lookup import look_up_targets
from yolo_loss.params import AssignerParams
from yolo_loss.results import Assignment, AssignmentResult, GroundTruth
from yolo_loss.sparse import assign_sparse
from yolo_loss.triton_assign import assign_triton, available
from yolo_loss.validate import check_floating, check_labels, check_shape

FORMULATIONS = {"dense": assign_dense, "sparse": assign_sparse}
# Up to so many (ground truth, anchor) pairs, candidates or not, looking at all of them is faster than listing some.
FEW_PAIRS = 2**14

PRESETS: dict[str, dict[str, Any]] = {
    "yolov8": {},
    # From release 8.4 on the reference seeks candidates in boxes of at least its second stride.
    "ultralytics-8.4": {"min_box_side": 16.0},
}


def preset_options(preset: str) -> dict[str, Any]:
    """Options of the assigner that a preset names.

    Raises:
        ValueError: There is no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[preset]


class TaskAlignedAssigner(nn.Module):
    """Gives each anchor point at most one ground truth (TOOD, arXiv 2108.07755), without gradients.

    Takes and returns what the assigner of YOLOv8 does. One difference: the result is deterministic and the same in
    every runtime. An anchor is chosen only with a metric above 0, and among equal metrics the smaller anchor index
    wins; the original leaves both to chance.

    Half-precision inputs are computed in float32, float64 stays float64.
    """

    def __init__(
        self,
        topk: int = 13,
        num_classes: int = 80,
        alpha: float = 1.0,
        beta: float = 6.0,
        eps: float = 1e-9,
        *,
        min_box_side: float | None = None,
        topk2: int | None = None,
        stride: Sequence[float] | None = None,
        formulation: str = "auto",
        compile_kernels: bool = False,
    ) -> None:
        """Set the hyper-parameters.

        Args:
            topk: Candidates k per ground truth.
            num_classes: C.
            alpha: Exponent of the class score.
            beta: Exponent of the overlap.
            eps: Margin inside a box, and what keeps the soft score finite.
            min_box_side: Candidates are sought in boxes of at least this side, in pixels; None: as they are.
            topk2: Anchors each ground truth keeps in the end, 1 for one-to-one; None: all it won.
            stride: As callers of release 8.4 pass it: ``min_box_side``, where not given, is its second entry.
            formulation: ``sparse``, over candidate pairs; ``dense``, without data-dependent shapes; or ``auto``: on a
                CPU by size, elsewhere ``dense``, which never waits for a GPU. The results are equal to the bit. Also
                ``triton``, kernels for a GPU that agree with these to rounding; ``dense`` where they do not fit.
            compile_kernels: Run the heavy parts through torch.compile. The first calls then take some seconds.

        Raises:
            ValueError: A count is not positive, or the formulation is unknown or not installed.
        """
        super().__init__()
        for name, value in (("topk", topk), ("num_classes", num_classes), ("topk2", 1 if topk2 is None else topk2)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if formulation not in (*FORMULATIONS, "triton", "auto"):
            raise ValueError(f"formulation is {formulation!r}, expected one of {', '.join(FORMULATIONS)}, triton, auto")
        if formulation == "triton" and not available():
            raise ValueError("formulation is 'triton', but that package is missing; pip install triton, or choose auto")
        if min_box_side is None and stride is not None and len(stride) > 1:
            min_box_side = float(stride[1])
        self.num_classes = num_classes
        self.params = AssignerParams(topk, alpha, beta, eps, min_box_side, topk2)
        self.formulation = formulation
        self.compile_kernels = compile_kernels

    def extra_repr(self) -> str:
        """Hyper-parameters, for print(module)."""
        numbers = ", ".join(f"{name}={value}" for name, value in self.params._asdict().items())
        return f"num_classes={self.num_classes}, {numbers}, formulation={self.formulation}"

    @uncompiled
    @torch.no_grad()
    def forward(
        self,
        pd_scores: Tensor,
        pd_bboxes: Tensor,
        anc_points: Tensor,
        gt_labels: Tensor,
        gt_bboxes: Tensor,
        mask_gt: Tensor,
    ) -> AssignmentResult:
        """Assign.

        Args:
            pd_scores: (B, A, C) class probabilities.
            pd_bboxes: (B, A, 4) predicted boxes, pixel xyxy.
            anc_points: (A, 2) anchor points, pixels.
            gt_labels: (B, M, 1) classes, any numeric type; below 0 counts as 0.
            gt_bboxes: (B, M, 4) pixel xyxy.
            mask_gt: (B, M, 1) non-zero on valid slots, any type.

        Returns:
            The five targets. Scores and boxes are float32, or float64 when an input is. With M = 0 the labels are
            ``num_classes`` and everything else is zero.

        Raises:
            ValueError: Shapes do not belong together, boxes or scores are integers, or a label is C or larger.
        """
        self._check(pd_scores, pd_bboxes, anc_points, gt_labels, gt_bboxes, mask_gt)
        dtype = compute_dtype(pd_scores, pd_bboxes, anc_points, gt_bboxes)
        ground_truth = GroundTruth(gt_labels.long(), gt_bboxes.to(dtype), mask_gt.bool())
        scores = ClassScores((Channels(pd_scores.transpose(1, 2), 0, self.num_classes),), dtype)
        with kernels_compiled(self.compile_kernels):
            assignment = self.assign(scores, pd_bboxes.to(dtype), anc_points.to(dtype), ground_truth)
        return look_up_targets(assignment, ground_truth, self.num_classes)

    @torch.no_grad()
    def assign(
        self, scores: ClassScores, pd_bboxes: Tensor, anc_points: Tensor, ground_truth: GroundTruth
    ) -> Assignment:
        """The assignment in compact form, for inputs that need no check.

        Args:
            scores: Class scores of all anchors.
            pd_bboxes: (B, A, 4) pixel xyxy.
            anc_points: (A, 2) pixels.
            ground_truth: Padded; M may be 0.

        Returns:
            Foreground mask, ground-truth slots and soft scores, each (B, A).
        """
        if ground_truth.gt_labels.shape[1] == 0:
            background = pd_bboxes.new_zeros(pd_bboxes.shape[:2])
            return Assignment(background.bool(), background.long(), background)
        formulation = self.formulation
        if formulation == "auto":
            pairs = pd_bboxes.shape[0] * pd_bboxes.shape[1] * ground_truth.gt_bboxes.shape[1]
            # Lists have lengths for which a GPU is waited for, and a graph of its kernels has one length of each.
            formulation = "dense" if pairs <= FEW_PAIRS or pd_bboxes.device.type != "cpu" else "sparse"
        chosen = assign_triton if formulation == "triton" else FORMULATIONS[formulation]
        return chosen(scores, pd_bboxes, anc_points, ground_truth, self.params)

    def _check(
        self,
        pd_scores: Tensor,
        pd_bboxes: Tensor,
        anc_points: Tensor,
        gt_labels: Tensor,
        gt_bboxes: Tensor,
        mask_gt: Tensor,
    ) -> None:
        check_shape("pd_scores", pd_scores, (None, None, self.num_classes), "(B, A, C), C as in num_classes")
        images, anchors = pd_scores.shape[:2]
        check_shape("pd_bboxes", pd_bboxes, (images, anchors, 4), "(B, A, 4), B and A as in pd_scores")
        check_shape("anc_points", anc_points, (anchors, 2), "(A, 2), A as in pd_scores")
        check_shape("gt_bboxes", gt_bboxes, (images, None, 4), "(B, M, 4), B as in pd_scores")
        slots = gt_bboxes.shape[1]
        check_shape("gt_labels", gt_labels, (images, slots, 1), "(B, M, 1), B and M as in gt_bboxes")
        check_shape("mask_gt", mask_gt, (images, slots, 1), "(B, M, 1), B and M as in gt_bboxes")
        for name, tensor in (("pd_scores", pd_scores), ("pd_bboxes", pd_bboxes), ("gt_bboxes", gt_bboxes)):
            check_floating(name, tensor)
        check_labels("gt_labels", gt_labels, self.num_classes)
