"""Names, types and axes of the inputs and outputs of each kind of model."""

from __future__ import annotations

from dataclasses import replace

from yolo_assigner.export.contract import DETECTOR_KINDS, Axis, TensorSpec
from yolo_assigner.export.hyperparameters import Hyperparameters

# Prefix of what the one-to-many branch of a head with two branches gives, and what that is: from its three targets and
# the ground truth the others follow.
ONE2MANY = "one2many_"
ONE2MANY_OUTPUTS = ("loss", "loss_items", "image_sums", "fg_mask", "target_gt_idx", "target_weights")


def input_specs(kind: str, hyperparameters: Hyperparameters) -> tuple[TensorSpec, ...]:
    """Return the inputs of a model kind in the graph's order."""
    ground_truth = (
        TensorSpec("gt_labels", "int64", ("B", "M", 1)),
        TensorSpec("gt_bboxes", "float32", ("B", "M", 4)),
        TensorSpec("mask_gt", "bool", ("B", "M", 1)),
    )
    if kind == "assigner":
        return (
            TensorSpec("pd_scores", "float32", ("B", "A", "C")),
            TensorSpec("pd_bboxes", "float32", ("B", "A", 4)),
            # S is 1, or B for points of each image.
            TensorSpec("anc_points", "float32", ("S", "A", 2)),
            *ground_truth,
        )
    further = extra_input_specs(hyperparameters)
    if kind in DETECTOR_KINDS:
        return (TensorSpec("images", "float32", ("B", 3, "H", "W")), *ground_truth, *further)
    return (*_maps("feat", hyperparameters), *ground_truth, *further)


def extra_input_specs(hyperparameters: Hyperparameters) -> tuple[TensorSpec, ...]:
    """Return the inputs of a graph with a loss that follow the ground truth: fields of ``yolo_loss.ClassInputs``."""
    wanted = hyperparameters.extra_inputs or ()
    weights = (TensorSpec("class_weights", "float32", ("B", hyperparameters.num_classes)),)
    regions = (
        TensorSpec("ignore_bboxes", "float32", ("B", "I", 4)),
        TensorSpec("mask_ignore", "bool", ("B", "I", 1)),
    )
    return (*(weights if "class_weights" in wanted else ()), *(regions if "ignore_bboxes" in wanted else ()))


def output_specs(kind: str, hyperparameters: Hyperparameters) -> tuple[TensorSpec, ...]:
    """Return the outputs of a model kind in the graph's order."""
    classes: Axis = "C" if kind == "assigner" else hyperparameters.num_classes
    targets: tuple[TensorSpec, ...] = (
        TensorSpec("target_labels", "int64", ("B", "A")),
        TensorSpec("target_bboxes", "float32", ("B", "A", 4)),
        TensorSpec("target_scores", "float32", ("B", "A", classes), heavy=True),
        TensorSpec("fg_mask", "bool", ("B", "A")),
        TensorSpec("target_gt_idx", "int64", ("B", "A")),
        TensorSpec("target_weights", "float32", ("B", "A")),
    )
    if kind == "assigner":
        return targets
    losses = (
        TensorSpec("loss", "float32", ()),
        TensorSpec("loss_items", "float32", (3,)),
        TensorSpec("image_sums", "float32", ("B", 4)),
    )
    predictions = TensorSpec("predictions", "float32", ("B", 4 + hyperparameters.num_classes, "A"))
    if kind in ("explain", "detector_explain"):
        return (*losses, *_explanation(hyperparameters), *([predictions] if kind in DETECTOR_KINDS else []))
    if hyperparameters.end_to_end:
        targets = (*targets, *_branch_specs((*losses, *targets)))
    further = {
        "loss": (),
        "loss_grad": tuple(replace(spec, name=f"grad_{spec.name}") for spec in _maps("feat", hyperparameters)),
        "detector_loss": (predictions,),
    }
    return (*losses, *targets, *further[kind])


def _explanation(hyperparameters: Hyperparameters) -> tuple[TensorSpec, ...]:
    """The outputs of ``explain`` behind the losses: fields of ``yolo_loss.explain``'s NamedTuples, in their order."""
    levels = len(hyperparameters.strides)
    shares = (
        TensorSpec("truth_sums", "float32", ("B", "M", 3)),
        TensorSpec("background_sums", "float32", ("B",)),
        TensorSpec("truth_loss", "float32", ("B", "M")),
        TensorSpec("background_loss", "float32", ("B",)),
    )
    truths = {
        "reason": "int64",
        "num_candidates": "int64",
        "num_chosen": "int64",
        "num_lost": "int64",
        "lost_to": "int64",
        "num_assigned": "int64",
        "weight_sum": "float32",
        "best_iou": "float32",
        "best_iou_anchor": "int64",
        "best_score": "float32",
        "best_score_anchor": "int64",
        "best_metric": "float32",
        "best_metric_anchor": "int64",
        "nearest_distance": "float32",
        "helping_side": "float32",
        "clipped_share": "float32",
        "duplicate_of": "int64",
        "weak": "bool",
    }
    indices = ("image", "slot", "anchor", "level", "rank", "outcome", "lost_to")
    pairs = ("image", "slot", "anchor", "level", "iou", "score", "metric", "rank", "outcome", "lost_to", "weight")
    return (
        *shares,
        *(
            TensorSpec(name, dtype, ("B", "M", levels) if name == "num_candidates" else ("B", "M"))
            for name, dtype in truths.items()
        ),
        *(TensorSpec(f"pair_{name}", "int64" if name in indices else "float32", ("P",)) for name in pairs),
    )


def _branch_specs(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return the outputs of a head with two branches that follow those of the one-to-one branch.

    Without a prefix ``loss`` is the loss of both branches, and everything else is the one-to-one branch's.

    Args:
        specs: Outputs of one branch.
    """
    named = {spec.name: spec for spec in specs}
    many = (replace(named[name], name=f"{ONE2MANY}{name}") for name in ONE2MANY_OUTPUTS)
    return (replace(named["loss"], name="one2one_loss"), *many)


def map_specs(kind: str, hyperparameters: Hyperparameters) -> tuple[TensorSpec, ...]:
    """Return the named values inside the graph of a kind with a detector: the raw maps, where the network ends."""
    if kind not in DETECTOR_KINDS:
        return ()
    if hyperparameters.end_to_end:
        return (*_maps(f"{ONE2MANY}map", hyperparameters), *_maps("one2one_map", hyperparameters))
    return _maps("map", hyperparameters)


def _maps(name: str, hyperparameters: Hyperparameters) -> tuple[TensorSpec, ...]:
    channels = 4 * hyperparameters.reg_max + hyperparameters.num_classes
    levels = range(len(hyperparameters.strides))
    return tuple(TensorSpec(f"{name}_{i}", "float32", ("B", channels, f"H{i}", f"W{i}")) for i in levels)
