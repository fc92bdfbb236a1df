"""The list of hyper-parameters that decide an exported model's results.

The options of ``yolo-assigner export onnx``, the contract's JSON, the tables of ``yolo-assigner export all`` and the
arguments of the assigner and the criterion are derived from the fields of :class:`Hyperparameters`. To add a
hyper-parameter, add an argument to the module that uses it and a field of the same name here.

Importing this module does not load torch; creating an instance does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from yolo_assigner.export.contract import DETECTOR_KINDS, KINDS
from yolo_loss.option_checks import (
    GAINS,
    class_weight_list,
    gain_values,
    one_of,
    real_number,
    stride_list,
    whole_number,
)

LOSS_KINDS = ("loss", "loss_grad", "detector_loss", "explain", "detector_explain")
# What a graph with a loss may take beside ground truth; regions come with a mask of the valid ones.
EXTRA_INPUTS = ("class_weights", "ignore_bboxes")
# Fields that only a detector with two branches has.
END_TO_END_OPTIONS = ("one2many_share", "topk_one2one", "topk2_one2one")


class Option(NamedTuple):
    """How a hyper-parameter is read, checked, described and stored.

    Attributes:
        parse: Converts the text of a command-line argument; None: a flag, which takes none.
        help: Description in ``--help``.
        metavar: Placeholder in ``--help``; derived from the name when None.
        check: Takes name and value, returns the value in its normal form or raises ValueError. None for fields of
            ``AssignerParams``, which checks its own, and for those that another module checks.
        to_json: Converts the value to its form in the contract.
        kinds: Model kinds that it concerns; the contract of another kind omits it where it is None.
        of_graph: Whether it shapes the graph alone, and is no argument of a module.
    """

    parse: Callable[[str], Any] | None
    help: str
    metavar: str | None = None
    check: Callable[[str, Any], Any] | None = None
    to_json: Callable[[Any], Any] = lambda value: value
    kinds: tuple[str, ...] = KINDS
    of_graph: bool = False


def _option(default: Any, parse: Callable[[str], Any] | None, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"option": Option(parse, text, **more)})


def numbers(text: str) -> tuple[float, ...]:
    """Parse comma-separated numbers."""
    return tuple(float(word) for word in text.split(","))


def words(text: str) -> tuple[str, ...]:
    """Parse comma-separated words."""
    return tuple(text.split(","))


def _check_extra_inputs(name: str, value: Any) -> tuple[str, ...] | None:
    """Put the names in their order; none at all is None."""
    for place, word in enumerate(value or ()):
        one_of(f"{name}[{place}]", word, EXTRA_INPUTS)
    return tuple(word for word in EXTRA_INPUTS if word in value) if value else None


def _check_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected true or false")
    return value


def _check_count(name: str, value: Any) -> int | None:
    return None if value is None else whole_number(name, value)


def _check_share(name: str, value: Any) -> float | None:
    if value is None:
        return None
    share = real_number(name, value)
    if share > 1:
        raise ValueError(f"{name} is {value!r}, expected a number from 0 to 1")
    return share


def _check_preset(name: str, value: Any) -> str:
    from yolo_loss.assigner import PRESETS

    return one_of(name, value, PRESETS)


def _check_class_loss(name: str, value: Any) -> str:
    from yolo_loss.criterion import CLASS_LOSSES

    return one_of(name, value, CLASS_LOSSES)


@dataclass(frozen=True)
class Hyperparameters:
    """Hyper-parameters of an exported model; the defaults are those of YOLOv8's detection loss.

    Values are checked as the modules check them and stored in one form: 10.0 as 10, any sequence of strides as a tuple.

    Attributes:
        num_classes: C. The assigner's graph takes any C; this one is used for tracing.
        strides: Pixels per cell of each level. A detector's decide which of ``models.PYRAMIDS`` it has.
        reg_max: R, bins per side of a box.
        topk: Candidates per ground truth.
        alpha: Exponent of the class score.
        beta: Exponent of the IoU.
        eps: Margin inside a box, and guard of the normalized alignment score.
        preset: Supplies ``min_box_side`` and ``topk2`` where those are None.
        min_box_side: Smallest side of the area in which candidates are sought, in pixels.
        topk2: Anchors that each ground truth keeps.
        class_loss: ``bce`` or ``varifocal``.
        gains: Weights of the box, class and DFL losses.
        class_weights: Factors of the class loss by class, the same for every image; None: 1.
        extra_inputs: Names among ``EXTRA_INPUTS`` that the graph takes beside ground truth; None: no more.
        scale: Scale of the detector, one of ``models.SCALES``; None for kinds without a detector.
        end_to_end: Whether the detector's head has a one-to-one branch beside the one-to-many branch. ``topk`` and
            ``topk2`` are then those of the one-to-many branch.
        one2many_share: Share of the one-to-many loss in the loss of both branches; None: that of the first epoch.
        topk_one2one: Candidates per ground truth in the one-to-one branch; None: ``EndToEndLoss``'s default.
        topk2_one2one: Anchors that each ground truth keeps in the one-to-one branch; None: likewise.

    Raises:
        ValueError: A name is unknown, a count or stride is not positive, a number is negative or not finite, or an
            option of two branches is given without them.
    """

    num_classes: int = _option(80, int, "the assigner's graph takes any C", metavar="C", check=whole_number)
    strides: tuple[float, ...] = _option(
        (8.0, 16.0, 32.0),
        numbers,
        "one per level; of a detector those of its pyramid",
        metavar="8,16,32",
        check=stride_list,
        to_json=list,
    )
    reg_max: int = _option(16, int, "bins per box side", metavar="R", check=whole_number, kinds=LOSS_KINDS)
    topk: int = _option(10, int, "candidates per ground truth")
    alpha: float = _option(0.5, float, "exponent of the class score")
    beta: float = _option(6.0, float, "exponent of the IoU")
    eps: float = _option(1e-9, float, "margin inside a box and guard of the normalized alignment score")
    preset: str = _option("yolov8", str, "yolov8 or ultralytics-8.4", check=_check_preset)
    min_box_side: float | None = _option(None, float, "over the preset's, pixels")
    topk2: int | None = _option(None, int, "over the preset's; 1 for one-to-one assignment")
    class_loss: str = _option("bce", str, "bce or varifocal", check=_check_class_loss, kinds=LOSS_KINDS)
    gains: tuple[float, ...] = _option(
        (7.5, 0.5, 1.5),
        numbers,
        "weights of the losses",
        metavar="BOX,CLS,DFL",
        check=lambda _, value: gain_values(value),
        to_json=lambda value: dict(zip(GAINS, value, strict=True)),
        kinds=LOSS_KINDS,
    )
    class_weights: tuple[float, ...] | None = _option(
        None,
        numbers,
        "constant factors of the class loss, one per class",
        metavar="W,W,...",
        to_json=lambda value: None if value is None else list(value),
        kinds=LOSS_KINDS,
    )
    extra_inputs: tuple[str, ...] | None = _option(
        None,
        words,
        "inputs beside ground truth, comma-separated: class_weights of each image, ignore_bboxes with their mask",
        metavar="NAMES",
        check=_check_extra_inputs,
        to_json=lambda value: None if value is None else list(value),
        kinds=LOSS_KINDS,
        of_graph=True,
    )
    scale: str | None = _option(None, str, "its scale: n, s, m, l or x", kinds=DETECTOR_KINDS)
    end_to_end: bool = _option(
        False,
        None,
        "its head has a one-to-many and a one-to-one branch",
        check=_check_flag,
        to_json=lambda value: value or None,
        kinds=DETECTOR_KINDS,
    )
    one2many_share: float | None = _option(
        None,
        float,
        "share of the one-to-many loss, with --end-to-end; 0.8 if not given",
        metavar="0..1",
        check=_check_share,
        kinds=DETECTOR_KINDS,
    )
    topk_one2one: int | None = _option(
        None, int, "candidates per ground truth in the one-to-one branch; 7", check=_check_count, kinds=DETECTOR_KINDS
    )
    topk2_one2one: int | None = _option(
        None, int, "anchors that each ground truth keeps there; 1", check=_check_count, kinds=DETECTOR_KINDS
    )

    def __post_init__(self) -> None:
        """Check all values and store them in their normal form."""
        from yolo_loss.assignment.params import AssignerParams

        given = {name: getattr(self, name) for name in OPTIONS}
        values = AssignerParams.checked(**{name: given[name] for name in AssignerParams._fields})._asdict()
        values |= {name: option.check(name, given[name]) for name, option in OPTIONS.items() if option.check}
        if self.class_weights is not None:
            values["class_weights"] = class_weight_list("class_weights", self.class_weights, values["num_classes"])
        for name in () if self.end_to_end else END_TO_END_OPTIONS:
            if values[name] is not None:
                remedy = "leave it out or set end_to_end"
                raise ValueError(f"{name} is {values[name]}, but the head has one branch; {remedy}")
        for name, value in values.items():
            object.__setattr__(self, name, value)  # frozen

    @classmethod
    def from_contract(cls, values: Mapping[str, Any]) -> Hyperparameters:
        """Read what :meth:`as_contract` wrote. Hyper-parameters that an older release did not know are the defaults."""
        return cls(**values)

    def as_contract(self) -> dict[str, Any]:
        """Return the values that take effect, in their JSON form, for the contract."""
        values = {name: OPTIONS[name].to_json(value) for name, value in self.effective().items()}
        return {name: value for name, value in values.items() if value is not None or OPTIONS[name].kinds == KINDS}

    def effective(self) -> dict[str, Any]:
        """Return all values by name, those of the preset or of two branches where the field is None."""
        from yolo_loss.assigner import preset_options

        defaults = preset_options(self.preset, self.strides) | (_end_to_end_defaults() if self.end_to_end else {})
        values = {name: getattr(self, name) for name in OPTIONS}
        return {name: defaults.get(name) if value is None else value for name, value in values.items()}

    def assigner_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of ``TaskAlignedAssigner``."""
        from yolo_loss.assignment.params import AssignerParams

        values = self.effective()
        return {name: values[name] for name in ("num_classes", *AssignerParams._fields)}

    def criterion_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of ``DetectionLoss``; with two branches that of the one-to-many branch."""
        options = {name for name, option in OPTIONS.items() if "loss" in option.kinds and not option.of_graph}
        return {name: value for name, value in self.effective().items() if name in options}

    def one2one_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of the one-to-one branch's ``DetectionLoss``."""
        values = self.effective()
        return self.criterion_arguments() | {"topk": values["topk_one2one"], "topk2": values["topk2_one2one"]}


def _end_to_end_defaults() -> dict[str, Any]:
    from yolo_loss.end_to_end import FIRST_SHARE, TOPK2_ONE2ONE, TOPK_ONE2ONE

    return dict(zip(END_TO_END_OPTIONS, (FIRST_SHARE, TOPK_ONE2ONE, TOPK2_ONE2ONE), strict=True))


OPTIONS: Mapping[str, Option] = {entry.name: entry.metadata["option"] for entry in fields(Hyperparameters)}
