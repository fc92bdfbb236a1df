"""YOLOv8's detection loss: assignment, then box, class and distribution losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolo_loss.anchors import cached_anchors, decode_levels
from yolo_loss.assigner import TaskAlignedAssigner, preset_options
from yolo_loss.checks import Array
from yolo_loss.class_factors import ClassFactors, class_factors
from yolo_loss.clipping import count_clipped_sides, may_exceed_every_level, warn_of_clipped_sides
from yolo_loss.collate import add_empty_slot, class_inputs_of, pad_to_device
from yolo_loss.execution.channels import ClassScores
from yolo_loss.execution.compilation import kernels_compiled, uncompiled, without_autocast
from yolo_loss.execution.transforms import detached, transformed, vectorized
from yolo_loss.losses import loss_from_sums
from yolo_loss.option_checks import class_weight_list, gain_values, one_of, stride_list, whole_number
from yolo_loss.predictions import AnchorMaker, RawOutput, join_map_lists, join_predictions
from yolo_loss.reductions.dense import dense_sums
from yolo_loss.reductions.gradients import dense_gradients, sparse_gradients
from yolo_loss.reductions.sparse import sparse_sums
from yolo_loss.structures import Assignment, ClassInputs, Gains, GroundTruth, LossResult, Predictions
from yolo_loss.triton.loss import LossOptions, anchors_by_kernel, loss_by_kernels, loss_is_supported
from yolo_loss.validate import check_batch

CLASS_LOSSES = ("bce", "varifocal")
NO_CLASS_INPUTS = ClassInputs()


class DetectionLoss(nn.Module):
    """The criterion, built from explicit hyper-parameters.

    It computes in float32, also for maps in half precision; float64 stays float64.
    """

    def __init__(
        self,
        num_classes: int = 80,
        strides: Sequence[float] | Tensor | Array = (8, 16, 32),
        reg_max: int = 16,
        *,
        topk: int = 10,
        alpha: float = 0.5,
        beta: float = 6.0,
        eps: float = 1e-9,
        gains: Sequence[float] | Mapping[str, float] | Tensor | Array = Gains(),  # noqa: B008  (immutable)
        class_loss: str = "bce",
        class_weights: Sequence[float] | Tensor | Array | None = None,
        preset: str = "yolov8",
        implementation: str = "auto",
        compile_kernels: bool = False,
        max_boxes: int | None = None,
        **assigner_options: Any,
    ) -> None:
        """Set the hyper-parameters.

        Args:
            num_classes: C.
            strides: Pixels per cell of each level; a sequence, an array or a tensor.
            reg_max: R, bins per side; 1 means plain distances, and the loss l1 in the place of dfl.
            topk: Candidates per ground truth.
            alpha: Exponent of the class score in the assignment.
            beta: Exponent of the IoU in the assignment.
            eps: Margin inside a box in the assignment, and keeps its scores finite.
            gains: Weights of the three losses, in the order of ``Gains`` or by its names.
            class_loss: ``bce`` or ``varifocal``.
            class_weights: (C,) not negative: factors of the class loss's elements by class; None: 1. A class of weight
                0 adds nothing and gets no gradient, whatever its logits are.
            preset: ``yolov8``, or ``ultralytics-8.4`` for that release's larger candidate areas.
            implementation: ``sparse``, over candidate pairs and foreground; ``dense``, without data-dependent shapes;
                or ``auto``, which on a CPU assigns by size, and elsewhere never waits for a GPU. Also ``triton``: as
                ``auto``, with the whole step in few GPU kernels, or the assignment where those do not apply.
            compile_kernels: Run the heavy parts through torch.compile. The first calls then take some seconds.
            max_boxes: M, fixed number of ground-truth slots per image; more boxes are an error. None: the batch's
                largest count, which for a batch on a GPU is the only synchronisation.
            **assigner_options: Other options of ``TaskAlignedAssigner``, as ``topk2``; they override the preset's.

        Raises:
            ValueError: A name is unknown, a count or stride is not positive, or a number is negative or not finite.
        """
        super().__init__()
        one_of("class_loss", class_loss, CLASS_LOSSES)
        self.num_classes = whole_number("num_classes", num_classes)
        self.strides = stride_list("strides", strides)
        self.reg_max = whole_number("reg_max", reg_max)
        self.gains = Gains(*gain_values(gains))
        self.class_loss = class_loss
        self.class_weights = (
            None if class_weights is None else class_weight_list("class_weights", class_weights, self.num_classes)
        )
        self.preset = preset
        self.compile_kernels = compile_kernels
        self._has_warned = False
        self.max_boxes = None if max_boxes is None else whole_number("max_boxes", max_boxes, 0)
        options = preset_options(preset, self.strides) | assigner_options
        self.assigner = TaskAlignedAssigner(
            topk, num_classes, alpha, beta, eps, implementation=implementation, **options
        )

    @property
    def loss_names(self) -> tuple[str, str, str]:
        """Names of the three losses, in the order of ``loss_items`` and ``image_sums``."""
        return "box", "cls", "l1" if self.reg_max == 1 else "dfl"

    @uncompiled
    def forward(self, preds: RawOutput, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Compute the loss of a training batch.

        Args:
            preds: The head's output: L maps (B, 4R + C, H_i, W_i), a tuple with such a list second, or a dict of
                ``boxes``, ``scores`` and ``feats``.
            batch: ``batch_idx`` (T,), ``cls`` (T,), ``bboxes`` (T, 4) normalised centre x, centre y, width, height;
                tensors, arrays or lists. Optional: ``class_weights`` (C,) or (B, C), which multiply those of the
                constructor, 0 where a class is not annotated in an image; and ``ignore_idx`` (K,), ``ignore_bboxes``
                (K, 4) in the form of ``bboxes``: regions in which background has no class loss.

        Returns:
            The loss () to call ``backward`` on, the sum of the three losses times B; and the three (3,), detached, in
            the order of ``loss_names``.

        Raises:
            ValueError: Shapes, dtypes, labels or image indices do not belong together, or an image has more boxes than
                ``max_boxes``.
        """
        result = self.evaluate(preds, batch, count_clipped=False)
        return result.loss, result.loss_items

    @uncompiled
    def evaluate(self, preds: RawOutput, batch: Mapping[str, Any], *, count_clipped: bool = True) -> LossResult:
        """Compute the loss as ``forward`` does, and return the sums per image and the assignment with it.

        With R > 1 the result also counts the sides of assigned boxes that are beyond the last bin. On a CPU it warns,
        once, where not even the coarsest level reaches a side, and names the ``reg_max`` or stride that would do; on a
        GPU reading the numbers would wait, and is left to the caller (``warn_of_clipped``).

        Args:
            preds: As for ``forward``.
            batch: As for ``forward``.
            count_clipped: False saves the count where nothing reads it, as ``forward`` does: ``clipped`` may be None.
        """
        predictions = join_predictions(preds, self.strides, self.num_classes, self.reg_max, self.anchor_maker)
        return self._evaluate(predictions, batch, count_clipped=count_clipped)

    @uncompiled
    def loss_from_maps(self, class_maps: Any, box_maps: Any, batch: Mapping[str, Any]) -> LossResult:
        """``evaluate`` for heads that give classes and boxes in two lists of maps, in any memory layout.

        Args:
            class_maps: L maps (B, C, H_i, W_i) of class logits.
            box_maps: L maps (B, 4R, H_i, W_i).
            batch: As for ``forward``.

        Returns:
            The loss with its sums and the assignment.

        Raises:
            ValueError: As ``forward``.
        """
        sizes = self.strides, self.num_classes, self.reg_max
        predictions = join_map_lists(class_maps, box_maps, *sizes, self.anchor_maker)
        return self._evaluate(predictions, batch)

    def warn_of_clipped(self, result: LossResult) -> None:
        """Warn, once in the criterion's life, of boxes that no level can express. Waits for a GPU.

        Args:
            result: As ``evaluate`` gives it.
        """
        if result.clipped is not None and not self._has_warned:
            self._has_warned = warn_of_clipped_sides(result.clipped, self.reg_max, self.strides)

    def _evaluate(
        self, predictions: Predictions, batch: Mapping[str, Any], *, count_clipped: bool = True
    ) -> LossResult:
        like, images = predictions.anchor_points, predictions.levels[0].scores_source.shape[0]
        columns = check_batch(batch, images, self.num_classes)
        height, width = (int(cells * self.strides[0]) for cells in predictions.grid_size)
        ground_truth = pad_to_device(columns, like, (height, width), images, self.max_boxes)
        class_inputs = class_inputs_of(batch, like, (height, width), images, self.num_classes)
        with_transforms = transformed(source for level in predictions.levels for source in level)
        compiled = self.compile_kernels and not with_transforms  # torch.compile does not support all transforms
        with without_autocast(like.device), kernels_compiled(compiled):
            result = self.from_padded(predictions, ground_truth, class_inputs)
        may_warn = like.device.type == "cpu" and not self._has_warned
        if self.reg_max == 1 or with_transforms or not (count_clipped or may_warn):
            return result
        side = self.assigner.params.min_box_side
        if not count_clipped and not may_exceed_every_level(ground_truth, self.reg_max, self.strides, side):
            return result
        if result.clipped is None:
            result = result._replace(clipped=count_clipped_sides(predictions, ground_truth, result.assignment))
        if may_warn:
            self.warn_of_clipped(result)
        return result

    def from_padded(
        self, predictions: Predictions, ground_truth: GroundTruth, class_inputs: ClassInputs = NO_CLASS_INPUTS
    ) -> LossResult:
        """Compute the loss from predictions and padded ground truth; exported models hold this function.

        Args:
            predictions: As ``join_predictions`` gives them.
            ground_truth: As ``pad_ground_truth`` gives it.
            class_inputs: Class weights of each image, and regions to ignore.

        Returns:
            The loss with its sums and the assignment.
        """
        if self.assigner.implementation == "triton" and loss_is_supported(predictions, self.assigner.params):
            one_of("class_loss", self.class_loss, CLASS_LOSSES)
            options = LossOptions(self.assigner.params, self.gains, self.class_loss, self.class_weights)
            return loss_by_kernels(predictions, ground_truth, class_inputs, options)
        ground_truth, assignment = self._assign(predictions, ground_truth)
        factors = self._class_factors(predictions, assignment, class_inputs)
        if self.assigner.implementation == "dense" or vectorized():
            image_sums = dense_sums(predictions, ground_truth, assignment, self.class_loss, factors)
        else:
            bound = self._max_foreground(ground_truth)
            image_sums = sparse_sums(predictions, ground_truth, assignment, self.class_loss, bound, factors, self.gains)
        loss, items = loss_from_sums(image_sums, self.gains)
        return LossResult(loss, items.detach(), image_sums, assignment)

    @torch.no_grad()
    def gradients_from_padded(
        self,
        predictions: Predictions,
        ground_truth: GroundTruth,
        class_inputs: ClassInputs = NO_CLASS_INPUTS,
    ) -> tuple[LossResult, list[Tensor]]:
        """Compute the loss and its gradients without autograd; exported models hold this function.

        Args:
            predictions: As ``join_predictions`` gives them for raw maps.
            ground_truth: As ``pad_ground_truth`` gives it.
            class_inputs: Class weights of each image, and regions to ignore.

        Returns:
            The loss with its sums and the assignment, and its gradient by each level, (B, 4R + C, A_i).
        """
        ground_truth, assignment = self._assign(predictions, ground_truth)
        factors = self._class_factors(predictions, assignment, class_inputs)
        if self.assigner.implementation == "dense":
            image_sums, gradients = dense_gradients(
                predictions, ground_truth, assignment, self.class_loss, self.gains, factors
            )
        else:
            bound = self._max_foreground(ground_truth)
            image_sums, gradients = sparse_gradients(
                predictions, ground_truth, assignment, self.class_loss, self.gains, bound, factors
            )
        return LossResult(*loss_from_sums(image_sums, self.gains), image_sums, assignment), gradients

    @property
    def anchor_maker(self) -> AnchorMaker:
        """What makes the anchor points of maps; ``join_predictions`` takes it."""
        if self.assigner.implementation == "triton":
            return anchors_by_kernel
        return cached_anchors

    def _class_factors(
        self, predictions: Predictions, assignment: Assignment, class_inputs: ClassInputs
    ) -> ClassFactors | None:
        return class_factors(self.class_weights, class_inputs, predictions, assignment, self.assigner.params.eps)

    def _max_foreground(self, ground_truth: GroundTruth) -> int | None:
        """Upper bound of the foreground anchors where counting them would wait for a GPU; None elsewhere."""
        images, slots, _ = ground_truth.gt_bboxes.shape
        if self.assigner.implementation not in ("auto", "triton") or ground_truth.gt_bboxes.device.type == "cpu":
            return None
        return images * self.assigner.params.max_assigned(slots)

    @torch.no_grad()
    def _assign(self, predictions: Predictions, ground_truth: GroundTruth) -> tuple[GroundTruth, Assignment]:
        """Add a slot to ground truth without one, and assign it."""
        one_of("class_loss", self.class_loss, CLASS_LOSSES)
        if ground_truth.gt_labels.shape[1] == 0:
            ground_truth = add_empty_slot(ground_truth)
        # Detached, because no_grad does not stop forward-mode derivatives.
        predictions = detached(predictions)
        points, strides = predictions.anchor_points, predictions.strides
        # TensorRT gets the dense implementation, without loops.
        loops = self.assigner.implementation != "dense"
        boxes = decode_levels(predictions.pred_distri, points, self.reg_max, image_by_image=loops)
        # Side by side, as they lie in memory: a product along the last axis of four takes runtimes ten times as long.
        boxes = (boxes.transpose(1, 2) * strides.t()).transpose(1, 2)  # (B, A, 4) pixels
        scores = ClassScores(predictions.pred_scores, points.dtype, logits=True)
        return ground_truth, self.assigner.assign(scores, boxes, points * strides, ground_truth)


class v8DetectionLoss(DetectionLoss):  # noqa: N801  (the name users of YOLO code know)
    """``DetectionLoss`` with its hyper-parameters read from a detector.

    It works with ``models.DetectionModel`` and with any detector whose ``model[-1]`` has ``nc``, ``reg_max`` and
    ``stride``, and whose ``args`` holds the gains ``box``, ``cls`` and ``dfl``.
    """

    def __init__(self, model: Any, tal_topk: int = 10, tal_topk2: int | None = None, **options: Any) -> None:
        """Read the hyper-parameters from the head, and the gains from ``args``.

        Args:
            model: The detector; a data-parallel wrapper is removed.
            tal_topk: Candidates per ground truth.
            tal_topk2: Anchors each ground truth keeps in the end; None: all it won.
            **options: Passed to ``DetectionLoss``: ``preset``, ``class_loss`` and others.

        Raises:
            ValueError: The head or the gains are missing, or a hyper-parameter is invalid.
        """
        model = getattr(model, "module", model)
        head = head_of(model)
        super().__init__(
            num_classes=head.nc,
            strides=head.stride,
            reg_max=head.reg_max,
            topk=tal_topk,
            topk2=tal_topk2,
            gains=gains_of(model),
            **options,
        )


def head_of(model: Any) -> Any:
    """The last module of a detector, with ``nc``, ``reg_max`` and ``stride``.

    Raises:
        ValueError: The model is no detector, or its head lacks one of these.
    """
    try:
        head = model.model[-1]
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise ValueError(
            f"{type(model).__name__} has no model[-1]; pass the detector, which of a YOLO object is its .model"
        ) from error
    missing = [name for name in ("nc", "reg_max", "stride") if not hasattr(head, name)]
    if missing:
        raise ValueError(
            f"the last module, {type(head).__name__}, lacks {', '.join(missing)}; it must be a Detect head"
        )
    try:
        stride_list("stride", head.stride)
    except ValueError as error:
        raise ValueError(f"{type(head).__name__}.{error}; it is set when the model is built") from error
    return head


def gains_of(model: Any) -> Gains:
    """The gains ``box``, ``cls`` and ``dfl`` in a detector's ``args``, an object or a dict.

    Raises:
        ValueError: One is missing, negative or not finite.
    """
    args = getattr(model, "args", None)
    gains = args if isinstance(args, Mapping) else vars(args) if hasattr(args, "__dict__") else {}
    missing = [name for name in Gains._fields if name not in gains]
    if missing:
        raise ValueError(
            f"model.args lacks the gains {', '.join(missing)}; set model.args to an object or a dict with box, cls and "
            "dfl, or use DetectionLoss(gains=...)"
        )
    return Gains(*gain_values({name: gains[name] for name in Gains._fields}))
