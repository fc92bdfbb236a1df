"""An assigner of which nothing but its contract exists."""

from __future__ import annotations

from yolo_assigner.export.contract import Contract, TensorSpec

AXES: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "pd_scores": ("float32", ("B", "A", "C")),
    "pd_bboxes": ("float32", ("B", "A", 4)),
    "anc_points": ("float32", ("A", 2)),
    "gt_labels": ("int64", ("B", "M", 1)),
    "gt_bboxes": ("float32", ("B", "M", 4)),
    "mask_gt": ("bool", ("B", "M", 1)),
}
CONTRACT = Contract(
    name="toy",
    kind="assigner",
    file="toy.onnx",
    sha256="",
    formulation="none",
    hyperparameters={"strides": [8, 16, 32], "topk": 10, "topk2": None},
    inputs=tuple(TensorSpec(name, dtype, axes) for name, (dtype, axes) in AXES.items()),
    outputs=(TensorSpec("target_weights", "float32", ("B", "A")),),
    versions={},
)
