"""``TaskAlignedAssigner``, with the interface that YOLO code expects."""

from __future__ import annotations

import warnings
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
from yolo_loss.checks import Array, check_padded, check_points
from yolo_loss.execution.channels import Channels, ClassScores
from yolo_loss.execution.compilation import kernels_compiled, uncompiled
from yolo_loss.execution.transforms import vectorized
from yolo_loss.option_checks import default_min_box_side, is_sequence, one_of, stride_list, whole_number
from yolo_loss.structures import Assignment, AssignmentResult, GroundTruth
from yolo_loss.triton.assignment import assign_targets, assign_triton
from yolo_loss.triton.launch import available
from yolo_loss.validate import as_tensor, check_labels, readable_values

# The implementations that run on every device and can be exported; `triton` needs a GPU.
IMPLEMENTATIONS = {"dense": assign_dense, "sparse": assign_sparse}
# Up to this many (ground truth, anchor) pairs, candidates or not, computing all of them is faster than listing some.
MAX_DENSE_PAIRS = 2**15

PRESETS: dict[str, dict[str, Any]] = {
    "yolov8": {},
    # From release 8.4 on the reference finds candidates in boxes of at least its second stride, here of 8, 16, 32.
    "ultralytics-8.4": {"min_box_side": 16.0},
}


def preset_options(preset: str, strides: Sequence[float]) -> dict[str, Any]:
    """The assigner options of a preset, for a head with these strides.

    Raises:
        ValueError: The preset is unknown.
    """
    options = PRESETS[one_of("preset", preset, PRESETS)]
    return {**options, "min_box_side": default_min_box_side(strides)} if "min_box_side" in options else options


class TaskAlignedAssigner(nn.Module):
    """Assigns at most one ground truth to each anchor point (TOOD, arXiv 2108.07755), without gradients.

    Inputs and outputs are those of YOLOv8's assigner. One difference: the result is deterministic and the same in every
    runtime. An anchor is chosen only with a metric above 0, and among equal metrics the smaller anchor index wins; the
    original leaves both to chance.

    Half-precision inputs are computed in float32, float64 stays float64.

    The hyper-parameters are attributes. They may be changed later, and each call reads them.
    """

    topk: int
    alpha: float
    beta: float
    eps: float
    min_box_side: float | None
    topk2: int | None

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
        formulation: str | None = None,
        **others: Any,
    ) -> None:
        """Set the hyper-parameters.

        Args:
            topk: Candidates k per ground truth.
            num_classes: C.
            alpha: Exponent of the class score.
            beta: Exponent of the IoU.
            *more: ``eps``; or, in the order of release 8.4, ``stride``, ``eps`` and ``topk2``.
            eps: Margin inside a box, and keeps the normalized alignment score finite; None: 1e-9.
            min_box_side: Boxes are enlarged to this side to find candidates, in pixels; None: as they are.
            topk2: Anchors each ground truth keeps in the end, 1 for one-to-one; None: all it won.
            stride: Strides of the head, as in release 8.4: if ``min_box_side`` is not given, it is the second stride,
                or the only one.
            implementation: ``sparse``, over candidate pairs; ``dense``, without data-dependent shapes; or ``auto``:
                on a CPU by size, elsewhere ``dense``, which never waits for a GPU. The results are equal to the bit.
                Also ``triton``, GPU kernels that agree with these up to rounding; ``dense`` where they do not apply.
            compile_kernels: Run the heavy parts through torch.compile. The first calls then take some seconds.
            formulation: The old name of ``implementation``; deprecated.
            **others: Any further field of ``AssignerParams``.

        Raises:
            ValueError: A count is not positive, a number is negative or not finite, something is given twice, or the
                implementation is unknown or not installed.
        """
        super().__init__()
        if formulation is not None:
            _warn_of_old_name()
            if implementation not in ("auto", formulation):
                raise ValueError(f"implementation is {implementation!r} and formulation {formulation!r}; leave one out")
            implementation = formulation
        one_of("implementation", implementation, (*IMPLEMENTATIONS, "triton", "auto"))
        if implementation == "triton" and not available():
            raise ValueError(
                "implementation is 'triton', but that package is missing; pip install triton, or choose auto"
            )
        given = _merge_positional(more, {"stride": stride, "eps": eps, "topk2": topk2})
        stride = given.pop("stride")
        if given["eps"] is None:
            del given["eps"]
        params = AssignerParams.checked(topk, alpha, beta, min_box_side=min_box_side, **given, **others)
        for name, value in params._asdict().items():
            setattr(self, name, value)
        self.num_classes = whole_number("num_classes", num_classes)
        self.stride = None if stride is None else stride_list("stride", stride)
        self.implementation = implementation
        self.compile_kernels = compile_kernels

    @property
    def params(self) -> AssignerParams:
        """The hyper-parameters of the assignment, read from the attributes.

        Raises:
            ValueError: One was set to something that the constructor refuses.
        """
        values = {name: getattr(self, name) for name in AssignerParams._fields}
        if self.min_box_side is None and self.stride is not None:
            values["min_box_side"] = default_min_box_side(stride_list("stride", self.stride))
        return AssignerParams.checked(**values)

    @property
    def formulation(self) -> str:
        """The old name of ``implementation``; deprecated."""
        _warn_of_old_name()
        return self.implementation

    @formulation.setter
    def formulation(self, value: str) -> None:
        _warn_of_old_name()
        self.implementation = value

    def extra_repr(self) -> str:
        """Hyper-parameters, for print(module)."""
        names = (*AssignerParams._fields, *(() if self.stride is None else ("stride",)))
        values = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"num_classes={self.num_classes}, {values}, implementation={self.implementation}"

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
        """Assign. Arrays of numpy and lists are accepted in place of tensors.

        Args:
            pd_scores: (B, A, C) class probabilities.
            pd_bboxes: (B, A, 4) predicted boxes, pixel xyxy.
            anc_points: (A, 2) anchor points of all images, pixels; or (B, A, 2), those of each image. An image with
                fewer points than others is padded with points behind its own that lie in none of its boxes, for example
                with y = -2^30, the least that is accepted: they become background and change nothing else. They should
                differ in x by equal steps, which the sparse implementation skips as one row.
            gt_labels: (B, M, 1) classes, any numeric dtype; below 0 counts as 0.
            gt_bboxes: (B, M, 4) pixel xyxy.
            mask_gt: (B, M, 1) non-zero on valid slots, any dtype.

        Returns:
            The five targets. Scores and boxes are float32, or float64 when an input is. With M = 0 the labels are
            ``num_classes`` and everything else is zero.

        Raises:
            ValueError: Shapes do not belong together, there is no anchor point, boxes or scores are integers, a label
                is C or larger or, in a valid slot, no whole number, or a hyper-parameter was set to an invalid value.
        """
        pd_scores, pd_bboxes, anc_points, gt_labels, gt_bboxes, mask_gt = self.check_inputs(
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
        if self._choose_implementation(0, pd_bboxes.device) == "triton":
            targets = assign_targets(scores, pd_bboxes.to(dtype), anc_points.to(dtype), ground_truth, self.params)
            if targets is not None:
                return targets
        with kernels_compiled(self.compile_kernels):
            assignment = self.assign(scores, pd_bboxes.to(dtype), anc_points.to(dtype), ground_truth)
        return look_up_targets(assignment, ground_truth, classes)

    @torch.no_grad()
    def assign(
        self, scores: ClassScores, pd_bboxes: Tensor, anc_points: Tensor, ground_truth: GroundTruth
    ) -> Assignment:
        """Assign in compact form, without checking the inputs.

        Args:
            scores: Class scores of all anchors.
            pd_bboxes: (B, A, 4) pixel xyxy.
            anc_points: (A, 2) or (B, A, 2) pixels; (1, A, 2) is as (A, 2).
            ground_truth: Padded; M may be 0.

        Returns:
            Foreground mask, ground-truth slots and normalized alignment scores, each (B, A).
        """
        if ground_truth.gt_labels.shape[1] == 0:
            background = pd_bboxes.new_zeros(pd_bboxes.shape[:2])
            return Assignment(background.bool(), background.long(), background)
        pairs = pd_bboxes.shape[0] * pd_bboxes.shape[1] * ground_truth.gt_bboxes.shape[1]
        name = self._choose_implementation(pairs, pd_bboxes.device)
        implementation = assign_triton if name == "triton" else IMPLEMENTATIONS[name]
        return implementation(scores, pd_bboxes, anc_points, ground_truth, self.params)

    def _choose_implementation(self, pairs: int, device: torch.device) -> str:
        one_of("implementation", self.implementation, (*IMPLEMENTATIONS, "triton", "auto"))
        if vectorized():
            if self.implementation in ("sparse", "triton"):
                raise ValueError(
                    f"implementation is {self.implementation!r}, which torch.func.vmap, jacfwd, jacrev and hessian "
                    "cannot batch: its lists have lengths that depend on the data; choose implementation='dense' or "
                    "'auto'"
                )
            return "dense"
        if self.implementation == "auto":
            # Learning the lists' lengths waits for a GPU, and a CUDA graph of its kernels has fixed lengths.
            return "dense" if pairs <= MAX_DENSE_PAIRS or device.type != "cpu" else "sparse"
        return self.implementation

    def check_inputs(self, **inputs: Any) -> list[Tensor]:
        """Convert the inputs of a call to tensors and check them."""
        integers = ("gt_labels", "mask_gt")
        tensors = {
            name: as_tensor(name, value, None if name in integers else np.float32, flags=name == "mask_gt")
            for name, value in inputs.items()
        }
        classes = whole_number("num_classes", self.num_classes)
        check_padded(tensors, classes)
        points = readable_values(tensors["anc_points"])
        if points is not None:
            check_points(points)
        check_labels(tensors["gt_labels"], tensors["mask_gt"], classes)
        return list(tensors.values())


def _merge_positional(more: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """Add the positional arguments behind ``beta`` to the named ones: a sequence is ``stride``, as in release 8.4."""
    order = ("stride", "eps", "topk2") if more and is_sequence(more[0]) else ("eps",)
    if len(more) > len(order):
        raise ValueError(f"{more[len(order) :]} is given behind {', '.join(order)}; name what is meant, as topk2=1")
    twice = [name for name in order[: len(more)] if named[name] is not None]
    if twice:
        raise ValueError(f"{', '.join(twice)} is given twice, by its place and by its name; leave one out")
    return {**named, **dict(zip(order, more, strict=False))}


def _warn_of_old_name() -> None:
    text = "formulation is now called implementation; use that name, since the old one goes with the next release"
    warnings.warn(text, FutureWarning, stacklevel=3)
