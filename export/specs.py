"""Names, types and axes of each kind of model, in the graph's order."""

from __future__ import annotations

from dataclasses import replace

from export.contract import Axis, TensorSpec
from export.hyperparameters import Hyperparameters


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
    channels = 4 * numbers.reg_max + numbers.num_classes
    levels = range(len(numbers.strides))
    maps = (TensorSpec(f"feat_{i}", "float32", ("B", channels, f"H{i}", f"W{i}")) for i in levels)
    return (*maps, *ground_truth)


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
    gradients = (
        replace(spec, name=f"grad_{spec.name}") for spec in input_specs(kind, numbers) if spec.name.startswith("feat_")
    )
    return (*losses, *targets, *(gradients if kind == "loss_grad" else ()))
