"""The whole loss step in GPU kernels: decoding, assignment, one pass over the class maps, one over the box maps.

The sum of all weights is known before the passes, so that these write the gradients of the loss beside the sums. The
plain modules are the reference: ``yolo_loss.reductions`` computes in their place where something is differentiated
twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yolo_loss.anchors import make_anchors
from yolo_loss.assignment.params import AssignerParams
from yolo_loss.class_factors import class_factors
from yolo_loss.collate import add_empty_slot
from yolo_loss.execution.buffers import to_device
from yolo_loss.execution.channels import Channels, ClassScores
from yolo_loss.execution.transforms import batched, detached, transformed
from yolo_loss.losses import loss_from_sums
from yolo_loss.reductions.sparse import sparse_sums
from yolo_loss.structures import (
    Assignment,
    ClassInputs,
    ClippedSides,
    Gains,
    GroundTruth,
    LossResult,
    Predictions,
)
from yolo_loss.triton.assignment import Pairs, allocate, assign_prepared, contiguous
from yolo_loss.triton.launch import as_flags, is_supported, launch, power_of_two, runs_on, steps_of

# Anchors of a program: decoded, of the class pass with so many classes at once, and of the box pass.
DECODE_BLOCK, CLASS_BLOCK, CLASSES_AT_ONCE, BOX_BLOCK = 64, 128, 16, 32
# With half as many, each thread would hold twice the numbers of as many anchors.
BOX_WARPS = 8
# Numbers that the program that adds all sums reads at once, and gradients that a program scales at once.
SUM_BLOCK, SCALE_BLOCK, SCALE_PROGRAMS = 2048, 1024, 1024


class LossOptions(NamedTuple):
    """Hyper-parameters of the loss.

    Attributes:
        params: Those of the assignment.
        gains: Weights of the losses.
        class_loss: ``bce`` or ``varifocal``.
        class_weights: (C,) factors of the classes; None: 1.
    """

    params: AssignerParams
    gains: Gains
    class_loss: str
    class_weights: Sequence[float] | None


class Step(NamedTuple):
    """What both passes read.

    Attributes:
        predictions: The head's output.
        truth: Padded ground truth, contiguous, the mask as bytes.
        assignment: Its targets.
        owner: (B, A) int32 slots, -1 on background.
        weight_sums: (B, parts) partial sums of each image's weights.
        class_weights: (C,) on the device, or None.
        class_inputs: Weights and regions of the batch as float32, the mask as bytes.
        options: Hyper-parameters.
    """

    predictions: Predictions
    truth: GroundTruth
    assignment: Assignment
    owner: Tensor
    weight_sums: Tensor
    class_weights: Tensor | None
    class_inputs: ClassInputs
    options: LossOptions


class Plain(NamedTuple):
    """What the plain modules compute the sums from.

    Attributes:
        predictions: The head's output, differentiable.
        ground_truth: Padded; M may be 0.
        class_inputs: Weights and regions of the batch.
    """

    predictions: Predictions
    ground_truth: GroundTruth
    class_inputs: ClassInputs


class Partial(NamedTuple):
    """Partial sums of each image, (B, blocks) of the class pass and, from ``box_sums`` on, of the box pass."""

    class_sums: Tensor
    box_sums: Tensor
    dfl_sums: Tensor
    clipped_lengths: Tensor
    clipped_counts: Tensor


class Results(NamedTuple):
    """Sums of each image (B, 4), loss (), its parts (3,), number of clipped sides () and the longest in pixels ()."""

    image_sums: Tensor
    loss: Tensor
    items: Tensor
    sides: Tensor
    longest: Tensor


class Upstream(NamedTuple):
    """Derivatives by the loss () and by the sums (B, 4) that gradients are multiplied with; both None: 1 and 0."""

    grad_loss: Tensor | None = None
    grad_sums: Tensor | None = None


def anchors_by_kernel(feats: Sequence[Tensor], strides: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """``make_anchors`` in one kernel instead of some ten operations for each level; arguments and result as there."""
    floats = all(feat.dtype in (torch.float32, torch.float16, torch.bfloat16) for feat in feats)
    if not floats or len(feats) != len(strides) or not runs_on(feats[0].device) or transformed(feats):
        return make_anchors(feats, strides)
    from yolo_loss.triton.loss_kernels import write_anchors

    sizes = tuple(feat.shape[2] * feat.shape[3] for feat in feats)
    points = torch.empty((sum(sizes), 2), dtype=torch.float32, device=feats[0].device)
    scales = points.new_empty((sum(sizes), 1))
    arguments = {
        **{"points": points, "scales": scales, "widths": tuple(feat.shape[3] for feat in feats), "sizes": sizes},
        **{"strides": tuple(float(stride) for stride in strides), "anchors": sum(sizes), "block": 256},
    }
    launch(write_anchors, (-(-sum(sizes) // 256),), points.device, arguments)
    return points, scales


def loss_is_supported(predictions: Predictions, params: AssignerParams) -> bool:
    """Whether the kernels compute the loss: on a GPU in float32 from maps of up to 32 bits, and under no transform."""
    points = predictions.anchor_points
    sources = [source for level in predictions.levels for source in level]
    return (
        is_supported(points.dtype, params, points.device)
        and all(source.numel() > 0 for source in sources)
        and all(len({source.dtype for source in kind}) == 1 for kind in zip(*predictions.levels, strict=True))
        and not torch.compiler.is_compiling()
        and not transformed(sources)
    )


def loss_by_kernels(
    predictions: Predictions, ground_truth: GroundTruth, class_inputs: ClassInputs, options: LossOptions
) -> LossResult:
    """Compute the loss, and where a map requires it the gradient.

    Args:
        predictions: The head's output.
        ground_truth: Padded; M may be 0.
        class_inputs: Class weights of each image, and regions to ignore.
        options: Hyper-parameters.

    Returns:
        The loss with its sums, the assignment and, with R > 1, the clipped sides; differentiable in every way that
        torch has, except under ``torch.func``.
    """
    with torch.no_grad():
        step = _assign(detached(predictions), ground_truth, class_inputs, options)
    plain = Plain(predictions, ground_truth, class_inputs)
    sources = [source for level in predictions.levels for source in level]
    if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
        results = Results(*_KernelLoss.apply(step, plain, *sources))  # type: ignore[no-untyped-call]
    else:
        results = _compute(step, None)
    clipped = None if predictions.reg_max == 1 else ClippedSides(results.sides, results.longest)
    return LossResult(results.loss, results.items, results.image_sums, step.assignment, clipped)


def _assign(
    predictions: Predictions, ground_truth: GroundTruth, class_inputs: ClassInputs, options: LossOptions
) -> Step:
    """Decode all boxes and assign."""
    truth, points = contiguous(ground_truth), predictions.anchor_points.contiguous()
    images, anchors = predictions.levels[0].scores_source.shape[0], points.shape[0]
    memory = allocate(images, anchors, truth.gt_labels.shape[1], points.device)
    scales = predictions.strides.contiguous()
    boxes = points.new_empty((images, 4, anchors)).transpose(1, 2)
    pairs = Pairs(points, scales, boxes, ClassScores(predictions.pred_scores, points.dtype, logits=True), truth)
    _decode(predictions, pairs, memory._asdict())
    weighed = assign_prepared(pairs, memory, options.params)
    weights = options.class_weights
    constants = None if weights is None else to_device(torch.tensor(weights, dtype=points.dtype), points.device)
    return Step(
        predictions._replace(anchor_points=points, strides=scales),
        truth,
        weighed.assignment,
        memory.owner,
        weighed.weight_sums,
        constants,
        _contiguous_inputs(class_inputs, points.dtype),
        options,
    )


def _contiguous_inputs(inputs: ClassInputs, dtype: torch.dtype) -> ClassInputs:
    weights = None if inputs.class_weights is None else inputs.class_weights.to(dtype).contiguous()
    if inputs.ignore_bboxes is None or inputs.mask_ignore is None:
        return ClassInputs(weights)
    return ClassInputs(weights, inputs.ignore_bboxes.to(dtype).contiguous(), as_flags(inputs.mask_ignore))


def _decode(predictions: Predictions, pairs: Pairs, memory: dict[str, Tensor]) -> None:
    from yolo_loss.triton.loss_kernels import decode

    arguments = {
        **_maps("distri", predictions.pred_distri),
        **{name: memory[name] for name in ("level_numbers", "level_positions", "zeroed")},
        **{"points": pairs.points, "scales": pairs.scales, "boxes": pairs.boxes, "length": memory["zeroed"].numel()},
        **{"anchors": pairs.points.shape[0], "block": DECODE_BLOCK, **_bins(predictions)},
    }
    images = pairs.boxes.shape[0]
    launch(decode, (_blocks(arguments["sizes"], DECODE_BLOCK), images + 1), pairs.boxes.device, arguments)


def _maps(name: str, levels: Sequence[Channels]) -> dict[str, Any]:
    """The arguments that describe some channels of all levels, by name."""
    views = [level.view() for level in levels]
    return {name: tuple(views), "steps": steps_of(views), "sizes": tuple(view.shape[2] for view in views)}


def _bins(predictions: Predictions) -> dict[str, int]:
    return {"reg_max": predictions.reg_max, "rows": power_of_two(predictions.reg_max)}


def _blocks(sizes: Sequence[int], block: int) -> int:
    """Number of blocks of all levels, none of which reaches into the next level."""
    return sum(-(-size // block) for size in sizes)


class _KernelLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, plain: Plain, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.step, ctx.plain, ctx.gradients = step, plain, None
        ctx.save_for_backward(*sources)
        # A float16 gradient is written in backward: before a loss scale is known, it would underflow.
        if all(source.dtype != torch.float16 for source in sources):
            ctx.gradients = _allocate_gradients(step.predictions)
        results = _compute(step, ctx.gradients)
        ctx.mark_non_differentiable(results.items, results.sides, results.longest)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, grad_sums: Tensor | None, grad_loss: Tensor | None, *_: Tensor | None) -> Any:
        sources = ctx.saved_tensors  # an error where one was overwritten
        upstream = Upstream(grad_loss, grad_sums)
        given = [grad for grad in upstream if grad is not None]
        if not given:
            return None, None, *(None for _ in sources)
        if torch.is_grad_enabled() or any(batched(grad) for grad in given):
            return None, None, *_differentiable_gradients(ctx.step, ctx.plain, upstream)
        gradients, ctx.gradients = ctx.gradients, None  # autograd may keep and change what it is given
        if gradients is not None and grad_loss is not None and grad_sums is None:
            _scale(gradients, grad_loss)
        else:
            gradients = _allocate_gradients(ctx.step.predictions)
            upstream = Upstream(*(None if grad is None else grad.contiguous() for grad in upstream))
            _run_passes(ctx.step, gradients, upstream, None)
        return None, None, *gradients.of_sources


class Gradients(NamedTuple):
    """Memory for the gradients of the levels' sources.

    Attributes:
        of_sources: Of each level's box and class source; where both are one, None for the second.
        distri: Views (B, 4R, A_i).
        logits: Views (B, C, A_i).
    """

    of_sources: list[Tensor | None]
    distri: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]


def _allocate_gradients(predictions: Predictions) -> Gradients:
    boxes, classes = 4 * predictions.reg_max, predictions.num_classes
    of_sources: list[Tensor | None] = []
    distri, logits = [], []
    for level in predictions.levels:
        same = level.distri_source is level.scores_source
        of_boxes = _like(level.distri_source, boxes + classes * same)
        of_classes = of_boxes if same else _like(level.scores_source, classes)
        of_sources += [of_boxes, None if same else of_classes]
        distri.append(of_boxes[:, :boxes])
        logits.append(of_classes[:, of_classes.shape[1] - classes :])
    return Gradients(of_sources, tuple(distri), tuple(logits))


def _like(source: Tensor, channels: int) -> Tensor:
    """A dense tensor for a source's gradient; zeros if the source has channels that nothing is computed from."""
    return torch.empty_like(source) if source.shape[1] == channels else torch.zeros_like(source)


def _scale(gradients: Gradients, grad_loss: Tensor) -> None:
    """Multiply all gradients by a derivative ()."""
    from yolo_loss.triton.loss_kernels import scale_gradients

    grads = tuple(gradient for gradient in gradients.of_sources if gradient is not None)
    numbers = tuple(gradient.numel() for gradient in grads)
    programs = min(SCALE_PROGRAMS, -(-max(numbers) // SCALE_BLOCK))
    arguments = {"grads": grads, "numbers": numbers, "grad_loss": grad_loss, "block": SCALE_BLOCK}
    launch(scale_gradients, (programs,), grad_loss.device, arguments)


@torch.enable_grad()
def _differentiable_gradients(step: Step, plain: Plain, upstream: Upstream) -> list[Tensor | None]:
    """Gradients that can be differentiated again, for ``create_graph=True``, or batched, by the plain modules."""
    predictions, ground_truth, class_inputs = plain
    if ground_truth.gt_labels.shape[1] == 0:
        ground_truth = add_empty_slot(ground_truth)
    images, slots, _ = ground_truth.gt_labels.shape
    params, gains, class_loss, weights = step.options
    bound = None if step.owner.device.type == "cpu" else images * params.max_assigned(slots)
    factors = class_factors(weights, class_inputs, predictions, step.assignment, params.eps)
    sums = sparse_sums(predictions, ground_truth, step.assignment, class_loss, bound, factors)
    results = zip((loss_from_sums(sums, gains)[0], sums), upstream, strict=True)
    outputs, grads = zip(*(pair for pair in results if pair[1] is not None), strict=True)
    levels = [
        [level.distri_source] if level.distri_source is level.scores_source else list(level)
        for level in predictions.levels
    ]
    needed = [source for level in levels for source in level if source.requires_grad]
    found = iter(torch.autograd.grad(outputs, needed, grads, create_graph=True))
    gradients: list[Tensor | None] = []
    for level in levels:
        own = [next(found) if source.requires_grad else None for source in level]
        gradients += own if len(own) > 1 else [*own, None]
    return gradients


def _compute(step: Step, gradients: Gradients | None) -> Results:
    """Run the passes with sums, and add these."""
    from yolo_loss.triton.loss_kernels import combine

    sizes = [level.anchors for level in step.predictions.pred_scores]
    images, floats = step.owner.shape[0], step.weight_sums
    class_blocks, box_blocks = _blocks(sizes, CLASS_BLOCK), _blocks(sizes, BOX_BLOCK)
    sums = [floats.new_empty((images, blocks)) for blocks in (class_blocks, *[box_blocks] * 3)]
    partial = Partial(sums[0], sums[1], sums[2], sums[3], step.owner.new_empty((images, box_blocks)))
    _run_passes(step, gradients, Upstream(), partial)
    counts = torch.empty((), dtype=torch.int64, device=floats.device)
    shapes: tuple[tuple[int, ...], ...] = ((images, 4), (), (3,), ())
    image_sums, loss, items, longest = (floats.new_empty(shape) for shape in shapes)
    rows = power_of_two(images)
    arguments = {
        **partial._asdict(),
        **{"image_sums": image_sums, "loss": loss, "items": items, "sides": counts, "longest": longest},
        **{"images": images, "class_parts": class_blocks, "box_parts": box_blocks},
        **{"weight_sums": floats, "weight_parts": floats.shape[1], "rows": rows, "block": max(SUM_BLOCK // rows, 1)},
        **dict(zip(("box_gain", "class_gain", "dfl_gain"), step.options.gains, strict=True)),
    }
    launch(combine, (1,), floats.device, arguments)
    return Results(image_sums, loss, items, counts, longest)


def _run_passes(step: Step, gradients: Gradients | None, upstream: Upstream, partial: Partial | None) -> None:
    """Run the class pass and the box pass.

    Args:
        step: What they read.
        gradients: Where they write gradients; None: nowhere.
        upstream: What the gradients are multiplied with.
        partial: Where they write sums; None: nowhere.
    """
    from yolo_loss.triton.loss_kernels import box_pass, class_pass

    sums = dict.fromkeys(Partial._fields) if partial is None else partial._asdict()
    shared = {
        **{"points": step.predictions.anchor_points, "scales": step.predictions.strides, "owner": step.owner},
        **{"weights": step.assignment.target_weights, "slots": step.truth.gt_labels.shape[1]},
        **{"weight_sums": step.weight_sums, "weight_parts": step.weight_sums.numel(), "anchors": step.owner.shape[1]},
        **{**upstream._asdict(), "with_sums": partial is not None, "with_grads": gradients is not None},
    }
    for kernel, block, own, names in (
        (class_pass, CLASS_BLOCK, _class_arguments(step, gradients), ("class_sums",)),
        (box_pass, BOX_BLOCK, _box_arguments(step, gradients), Partial._fields[1:]),
    ):
        grid = (_blocks(own["sizes"], block), step.owner.shape[0])
        launch(kernel, grid, step.owner.device, shared | own | {name: sums[name] for name in names} | {"block": block})


def _class_arguments(step: Step, gradients: Gradients | None) -> dict[str, Any]:
    """Arguments of the class pass alone."""
    grads, classes = None if gradients is None else gradients.logits, step.predictions.num_classes
    weights, regions, valid = step.class_inputs
    return {
        **_maps("logits", step.predictions.pred_scores),
        **{"logit_grads": grads, "grad_steps": None if grads is None else steps_of(grads)},
        **{"labels": step.truth.gt_labels, "constant_weights": step.class_weights, "image_weights": weights},
        **{"regions": regions, "region_valid": valid, "region_slots": 0 if regions is None else regions.shape[1]},
        **{"gain": step.options.gains.cls, "eps": step.options.params.eps, "classes": classes},
        **{"varifocal": step.options.class_loss == "varifocal"},
        **{"channels": min(CLASSES_AT_ONCE, power_of_two(classes))},
    }


def _box_arguments(step: Step, gradients: Gradients | None) -> dict[str, Any]:
    """Arguments of the box pass alone."""
    grads, (height, width) = None if gradients is None else gradients.distri, step.predictions.grid_size
    return {
        **_maps("distri", step.predictions.pred_distri),
        **{"distri_grads": grads, "grad_steps": None if grads is None else steps_of(grads)},
        **{"truth": step.truth.gt_bboxes, "width": width, "height": height, **_bins(step.predictions)},
        "num_warps": BOX_WARPS,
        **{"box_gain": step.options.gains.box, "dfl_gain": step.options.gains.dfl},
    }
