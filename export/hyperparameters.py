"""All numbers that decide an exported model's results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from yolo_loss import Gains
from yolo_loss.assigner import PRESETS, preset_options
from yolo_loss.assignment.params import AssignerParams
from yolo_loss.criterion import CLASS_LOSSES
from yolo_loss.option_checks import gain_values, one_of, stride_list, whole_number


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
        scale: Of the detector, one of ``models.SCALES``; None where a model has none.
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
    scale: str | None = None

    def __post_init__(self) -> None:
        """Check as the modules do, and keep the numbers as these do: 10.0 as 10, any strides as a tuple.

        Raises:
            ValueError: A name is unknown, a count or stride is not positive, or a number is negative or not finite.
        """
        one_of("preset", self.preset, PRESETS)
        one_of("class_loss", self.class_loss, CLASS_LOSSES)
        assigner = AssignerParams.checked(
            self.topk, self.alpha, self.beta, self.eps, self.min_box_side, self.topk2
        )._asdict()
        rest = {
            "num_classes": whole_number("num_classes", self.num_classes),
            "strides": stride_list("strides", self.strides),
            "reg_max": whole_number("reg_max", self.reg_max),
            "gains": gain_values(self.gains),
        }
        for name, value in (assigner | rest).items():
            object.__setattr__(self, name, value)  # the dataclass is frozen for others

    @classmethod
    def from_contract(cls, values: dict[str, Any]) -> Hyperparameters:
        """Read what ``as_contract`` wrote."""
        gains = values["gains"]
        numbers = {**values, "strides": tuple(values["strides"]), "gains": tuple(gains[name] for name in Gains._fields)}
        return cls(**numbers)

    def as_contract(self) -> dict[str, Any]:
        """For the contract: the options as they take effect, the gains by name."""
        values = {**asdict(self), **self.options, "gains": Gains(*self.gains)._asdict(), "strides": list(self.strides)}
        if self.scale is None:
            del values["scale"]
        return values

    @property
    def options(self) -> dict[str, Any]:
        """``min_box_side`` and ``topk2`` as they take effect, the preset's where none was named."""
        named = {"min_box_side": self.min_box_side, "topk2": self.topk2}
        preset = preset_options(self.preset, self.strides)
        return {name: preset.get(name) if value is None else value for name, value in named.items()}
