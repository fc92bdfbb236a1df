"""From plain numbers to the modules, and from modules to graphs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from export.contract import Axis, TensorSpec
from export.graphs import AssignerGraph, LossGraph
from yolo_loss import DetectionLoss, Gains, TaskAlignedAssigner
from yolo_loss.assigner import FORMULATIONS, preset_options


@dataclass(frozen=True)
class Hyperparameters:
    """All numbers that decide the result; defaults are YOLOv8's detection loss.

    Attributes:
        num_classes: C; the assigner's graph takes any, this is the one it is traced with.
        strides: Pixels per cell of each level.
        reg_max: R.
        topk: Candidates per ground truth.
        alpha: Exponent of the class score.
        beta: Exponent of the overlap.
        eps: Of the assignment.
        preset: Source of ``min_box_side`` and ``topk2`` where those are None.
        min_box_side: Smallest side when candidates are sought.
        topk2: Anchors each ground truth keeps.
        class_loss: ``bce`` or ``varifocal``; loss only.
        gains: box, cls, dfl; loss only.
    """

    num_classes: int = 80
    strides: tuple[float, ...] = (8.0, 16.0, 32.0)
    reg_max: int = 16
    topk: int = 10
    alpha: float = 0.5
    beta: float = 6.0
    eps: float = 1e-9
    preset: str = "yolov8"
    min_box_side: float | None = None
    topk2: int | None = None
    class_loss: str = "bce"
    gains: tuple[float, ...] = tuple(Gains())

    def __post_init__(self) -> None:
        """Check what the modules would not name as clearly.

        Raises:
            ValueError: The preset is unknown, or gains are not three.
        """
        preset_options(self.preset)
        if len(self.gains) != len(Gains._fields):
            raise ValueError(f"gains has {len(self.gains)} numbers, expected three: {', '.join(Gains._fields)}")

    @classmethod
    def from_contract(cls, values: dict[str, Any]) -> Hyperparameters:
        """Read what ``as_contract`` wrote."""
        gains = values["gains"]
        numbers = {**values, "strides": tuple(values["strides"]), "gains": tuple(gains[name] for name in Gains._fields)}
        return cls(**numbers)

    def as_contract(self) -> dict[str, Any]:
        """For the contract: the options as they take effect, the gains by name."""
        return {**asdict(self), **self.options, "gains": Gains(*self.gains)._asdict(), "strides": list(self.strides)}

    @property
    def options(self) -> dict[str, Any]:
        """``min_box_side`` and ``topk2`` as they take effect, the preset's where none was named."""
        named = {"min_box_side": self.min_box_side, "topk2": self.topk2}
        preset = preset_options(self.preset)
        return {name: preset.get(name) if value is None else value for name, value in named.items()}


def build_graph(kind: str, numbers: Hyperparameters, formulation: str) -> nn.Module:
    """The module whose forward becomes the graph.

    Args:
        kind: ``assigner`` or ``loss``.
        numbers: Hyper-parameters.
        formulation: How the assignment is computed, ``dense`` or ``sparse``.

    Raises:
        ValueError: A hyper-parameter is out of range.
    """
    if formulation not in FORMULATIONS:
        raise ValueError(
            f"formulation is {formulation!r}, but a graph has one of {', '.join(FORMULATIONS)}; choose one"
        )
    if kind == "assigner":
        assigner = TaskAlignedAssigner(
            numbers.topk,
            numbers.num_classes,
            numbers.alpha,
            numbers.beta,
            numbers.eps,
            formulation=formulation,
            **numbers.options,
        )
        return AssignerGraph(assigner).eval()
    criterion = DetectionLoss(
        numbers.num_classes,
        numbers.strides,
        numbers.reg_max,
        topk=numbers.topk,
        alpha=numbers.alpha,
        beta=numbers.beta,
        eps=numbers.eps,
        gains=Gains(*numbers.gains),
        class_loss=numbers.class_loss,
        preset=numbers.preset,
        formulation=formulation,
        **numbers.options,
    )
    return LossGraph(criterion).eval()


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
    return (*losses, *targets)
