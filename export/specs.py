"""Names, types and axes of each kind of model, in the graph's order."""

from __future__ import annotations

from dataclasses import replace

from yolo_assigner.export.contract import Axis, TensorSpec
from yolo_assigner.export.hyperparameters import Hyperparameters


def input_specs(kind: str, numbers: Hyperparameters) -> tuple[TensorSpec, ...]:
    """The graph's inputs with named axes, in its order."""
    ground_truth = (
        TensorSpec("gt_labels", "int64", ("B", "M", 1)),
        TensorSpec("gt_bboxes", "float32", ("B", "M", 4)),
        TensorSpec("mask_gt", "bool", ("B", "M", 1)),
    )
    if kind == "assigner":
        return (
            TensorSpec("pd_scores", "float32", ("B", "A", "C")),
            TensorSpec("pd_bboxes", "float32", ("B", "A", 4)),
            TensorSpec("anc_points", "float32", ("A", 2)),
            *ground_truth,
        )
    if kind == "detector_loss":
        return (TensorSpec("images", "float32", ("B", 3, "H", "W")), *ground_truth)
    return (*_maps("feat", numbers), *ground_truth)


def output_specs(kind: str, numbers: Hyperparameters) -> tuple[TensorSpec, ...]:
    """The graph's outputs with named axes, in its order. A counts the anchors of all levels."""
    classes: Axis = "C" if kind == "assigner" else numbers.num_classes
    targets = (
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
    further = {
        "loss": (),
        "loss_grad": tuple(replace(spec, name=f"grad_{spec.name}") for spec in _maps("feat", numbers)),
        "detector_loss": (TensorSpec("predictions", "float32", ("B", 4 + numbers.num_classes, "A")),),
    }
    return (*losses, *targets, *further[kind])


def map_specs(kind: str, numbers: Hyperparameters) -> tuple[TensorSpec, ...]:
    """Values inside the graph that have fixed names: the raw maps of a detector's head, where its network ends."""
    return _maps("map", numbers) if kind == "detector_loss" else ()


def _maps(name: str, numbers: Hyperparameters) -> tuple[TensorSpec, ...]:
    channels = 4 * numbers.reg_max + numbers.num_classes
    levels = range(len(numbers.strides))
    return tuple(TensorSpec(f"{name}_{i}", "float32", ("B", channels, f"H{i}", f"W{i}")) for i in levels)
