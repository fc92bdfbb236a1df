"""The assigner as users of YOLO code know it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo_loss.anchors import compute_dtype
from yolo_loss.assignment.dense import assign_dense
from yolo_loss.assignment.params import AssignerParams
from yolo_loss.assignment.sparse import assign_sparse
from yolo_loss.assignment.targets import look_up_targets
from yolo_loss.assignment.triton import assign_triton, available
from yolo_loss.checks import Array, check_padded, check_points
from yolo_loss.execution.channels import Channels, ClassScores
from yolo_loss.execution.compilation import kernels_compiled, uncompiled
from yolo_loss.execution.transforms import vectorized
from yolo_loss.option_checks import default_min_box_side, is_sequence, one_of, stride_list, whole_number
from yolo_loss.structures import Assignment, AssignmentResult, GroundTruth
from yolo_loss.validate import as_tensor, check_labels, readable_values

IMPLEMENTATIONS = {"dense": assign_dense, "sparse": assign_sparse}
# Up to so many (ground truth, anchor) pairs, candidates or not, looking at all of them is faster than listing some.
FEW_PAIRS = 2**14

PRESETS: dict[str, dict[str, Any]] = {
    "yolov8": {},
    # From release 8.4 on the reference seeks candidates in boxes of at least its second stride, here of 8, 16, 32.
    "ultralytics-8.4": {"min_box_side": 16.0},
}


def preset_options(preset: str, strides: Sequence[float]) -> dict[str, Any]:
    """Options of the assigner that a preset names, for a head of these strides.

    Raises:
        ValueError: There is no such preset.
    """
    options = PRESETS[one_of("preset", preset, PRESETS)]
    return {**options, "min_box_side": default_min_box_side(strides)} if "min_box_side" in options else options


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
        *more: Any,
        eps: float | None = None,
        min_box_side: float | None = None,
        topk2: int | None = None,
        stride: Sequence[float] | Tensor | Array | None = None,
        implementation: str = "auto",
        compile_kernels: bool = False,
    ) -> None:
        """Set the hyper-parameters. They may be changed later as attributes, which each call reads.

        Args:
            topk: Candidates k per ground truth.
            num_classes: C.
            alpha: Exponent of the class score.
            beta: Exponent of the overlap.
            *more: ``eps``; or, in the order of release 8.4, ``stride``, ``eps`` and ``topk2``.
            eps: Margin inside a box, and what keeps the soft score finite; None: 1e-9.
            min_box_side: Candidates are sought in boxes of at least this side, in pixels; None: as they are.
            topk2: Anchors each ground truth keeps in the end, 1 for one-to-one; None: all it won.
            stride: As callers of release 8.4 pass it: ``min_box_side``, where not given, is its second entry, or its
                only one.
            implementation: ``sparse``, over candidate pairs; ``dense``, without data-dependent shapes; or ``auto``: on a
                CPU by size, elsewhere ``dense``, which never waits for a GPU. The results are equal to the bit. Also
                ``triton``, kernels for a GPU that agree with these to rounding; ``dense`` where they do not fit.
            compile_kernels: Run the heavy parts through torch.compile. The first calls then take some seconds.

        Raises:
            ValueError: A count is not positive, a number is negative or not finite, something is given twice, or the
                implementation is unknown or not installed.
        """
        super().__init__()
        one_of("implementation", implementation, (*IMPLEMENTATIONS, "triton", "auto"))
        if implementation == "triton" and not available():
            raise ValueError(
                "implementation is 'triton', but that package is missing; pip install triton, or choose auto"
            )
        given = _positional(more, {"stride": stride, "eps": eps, "topk2": topk2})
        self.num_classes = whole_number("num_classes", num_classes)
        self.stride = None if given["stride"] is None else stride_list("stride", given["stride"])
        options = AssignerParams.checked(
            topk, alpha, beta, 1e-9 if given["eps"] is None else given["eps"], min_box_side, given["topk2"]
        )
        self.topk, self.alpha, self.beta, self.eps, self.min_box_side, self.topk2 = options
        self.implementation = implementation
        self.compile_kernels = compile_kernels

    @property
    def params(self) -> AssignerParams:
        """The hyper-parameters of the assignment as the attributes say them now.

        Raises:
            ValueError: One was set to something that the constructor refuses.
        """
        side = self.min_box_side
        if side is None and self.stride is not None:
            side = default_min_box_side(stride_list("stride", self.stride))
        return AssignerParams.checked(self.topk, self.alpha, self.beta, self.eps, side, self.topk2)

    def extra_repr(self) -> str:
        """Hyper-parameters, for print(module)."""
        names = (*AssignerParams._fields, *(() if self.stride is None else ("stride",)))
        numbers = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"num_classes={self.num_classes}, {numbers}, implementation={self.implementation}"

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
        """Assign. Arrays of numpy and lists are taken for tensors.

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
            ValueError: Shapes do not belong together, there is no anchor point, boxes or scores are integers, a label
                is C or larger or, in a valid slot, no whole number, or a hyper-parameter was set to what it cannot be.
        """
        pd_scores, pd_bboxes, anc_points, gt_labels, gt_bboxes, mask_gt = self._checked(
            pd_scores=pd_scores,
            pd_bboxes=pd_bboxes,
            anc_points=anc_points,
            gt_labels=gt_labels,
            gt_bboxes=gt_bboxes,
            mask_gt=mask_gt,
        )
        dtype = compute_dtype(pd_scores, pd_bboxes, anc_points, gt_bboxes)
        ground_truth = GroundTruth(gt_labels.long(), gt_bboxes.to(dtype), mask_gt.bool())
        classes = pd_scores.shape[2]
        scores = ClassScores((Channels(pd_scores.transpose(1, 2), 0, classes),), dtype)
        with kernels_compiled(self.compile_kernels):
            assignment = self.assign(scores, pd_bboxes.to(dtype), anc_points.to(dtype), ground_truth)
        return look_up_targets(assignment, ground_truth, classes)

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
        pairs = pd_bboxes.shape[0] * pd_bboxes.shape[1] * ground_truth.gt_bboxes.shape[1]
        implementation = self._implementation(pairs, pd_bboxes.device)
        chosen = assign_triton if implementation == "triton" else IMPLEMENTATIONS[implementation]
        return chosen(scores, pd_bboxes, anc_points, ground_truth, self.params)

    def _implementation(self, pairs: int, device: torch.device) -> str:
        """The implementation that computes so many pairs."""
        one_of("implementation", self.implementation, (*IMPLEMENTATIONS, "triton", "auto"))
        if vectorized():
            if self.implementation in ("sparse", "triton"):
                raise ValueError(
                    f"implementation is {self.implementation!r}, which torch.func.vmap, jacfwd, jacrev and hessian cannot "
                    "batch: its lists have lengths that depend on the data; choose implementation='dense' or 'auto'"
                )
            return "dense"
        if self.implementation == "auto":
            # Lists have lengths for which a GPU is waited for, and a graph of its kernels has one length of each.
            return "dense" if pairs <= FEW_PAIRS or device.type != "cpu" else "sparse"
        return self.implementation

    def _checked(self, **inputs: Any) -> list[Tensor]:
        """The inputs of a call as tensors."""
        whole = ("gt_labels", "mask_gt")
        tensors = {
            name: as_tensor(name, value, None if name in whole else np.float32, flags=name == "mask_gt")
            for name, value in inputs.items()
        }
        classes = whole_number("num_classes", self.num_classes)
        check_padded(tensors, classes)
        points = readable_values(tensors["anc_points"])
        if points is not None:
            check_points(points)
        check_labels(tensors["gt_labels"], tensors["mask_gt"], classes)
        return list(tensors.values())


def _positional(more: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """Add what stands behind ``beta`` to what was named: several numbers are strides, as in release 8.4."""
    order = ("stride", "eps", "topk2") if more and is_sequence(more[0]) else ("eps",)
    if len(more) > len(order):
        raise ValueError(f"{more[len(order) :]} is given behind {', '.join(order)}; name what is meant, as topk2=1")
    twice = [name for name in order[: len(more)] if named[name] is not None]
    if twice:
        raise ValueError(f"{', '.join(twice)} is given twice, by its place and by its name; leave one out")
    return {**named, **dict(zip(order, more, strict=False))}
