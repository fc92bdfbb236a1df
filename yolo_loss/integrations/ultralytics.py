"""The loss and the assigner in Ultralytics' own trainer: ``with use(): YOLO("yolo11n.yaml").train(...)``.

Using it needs your own installation of the package ``ultralytics``, whose licence is AGPL-3.0. This module imports that
package when something is used, and contains nothing of it.

Models look their criterion up by name, again for the exponential average and for validation. So the names are replaced
and not the attribute of one model.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from types import MappingProxyType
from typing import Any, ClassVar

from yolo_loss.assigner import TaskAlignedAssigner
from yolo_loss.criterion import DetectionLoss, head_of
from yolo_loss.integrations.ultralytics_criterion import (
    KEEP_THEIRS,
    LOSSES,
    WITHOUT,
    DetectionCriterion,
    EndToEndCriterion,
    Options,
    Unpickled,
    original,
    release_preset,
    with_preset,
)

TASKS = "ultralytics.nn.tasks"
# Criteria that do not derive from the detection criterion, but compute one.
OTHER_CRITERIA = MappingProxyType(
    {
        "TVPDetectLoss": KEEP_THEIRS,
        "TVPSegmentLoss": KEEP_THEIRS,
        "E2EDetectLoss": "heads with two branches need release 8.4",
    }
)
# Criteria whose assigner looks at more than boxes.
OTHER_ASSIGNMENT = ("v8OBBLoss", "SegmentLoss26", "PoseLoss26")
OTHER_ASSIGNERS = ("RotatedTaskAlignedAssigner", "SegTaskAlignedAssigner", "PoseTaskAlignedAssigner")

__all__ = ["Replacement", "criterion_for", "restore", "use"]


class Replacement:
    """Names that are replaced in the installed package, until ``restore()`` or the end of a ``with`` block."""

    def __init__(self, replacements: dict[str, type]) -> None:
        """Replace the names.

        Args:
            replacements: Classes by the name that each replaces, in every module that looks it up.
        """
        self._before = [
            (module, name, getattr(module, name))
            for module in map(import_module, (TASKS, LOSSES))
            for name in replacements
            if hasattr(module, name)
        ]
        for module, name, _ in self._before:
            setattr(module, name, replacements[name])

    def restore(self) -> None:
        """Put back what was there before."""
        for module, name, value in self._before:
            setattr(module, name, value)

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, *_error: object) -> None:
        self.restore()


def use(*, assigner_only: bool = False, **options: Any) -> Replacement:
    """Replace Ultralytics' detection loss, or only its assigner, from now on.

    Args:
        assigner_only: Replace the assigner in Ultralytics' own criteria: for segmentation, pose, YOLOE and World
            models, whose other losses stay theirs.
        **options: Passed to ``DetectionLoss``, or with ``assigner_only`` to ``TaskAlignedAssigner``.

    Returns:
        The replacement. As a context manager it puts the names back at the end of the block.

    Raises:
        ImportError: The package is missing, or has not the names of a known release.
        TypeError: An option is not known.
        ValueError: An option has a wrong value, or no preset has the release's candidate areas.
    """
    (TaskAlignedAssigner if assigner_only else DetectionLoss)(
        **options
    )  # a wrong option ends here, not in the training
    return Replacement(_assigners(options) if assigner_only else _criteria(options))


def restore() -> None:
    """Undo every ``use()``."""
    for module in (sys.modules[name] for name in (TASKS, LOSSES) if name in sys.modules):
        for name in list(vars(module)):
            if hasattr(getattr(module, name), "replaced"):
                setattr(module, name, original(module.__name__, name))


def criterion_for(model: Any, **options: Any) -> DetectionCriterion | EndToEndCriterion:
    """Make the criterion of a detector of Ultralytics, for a loop of your own.

    Args:
        model: The detector, not the ``YOLO`` object around it; ``model.args`` holds the gains.
        **options: Passed to ``DetectionLoss``.

    Returns:
        A criterion to call with predictions and batch, or to set as ``model.criterion``.

    Raises:
        ValueError: The head has losses that cannot be computed here, or the installed release is not known.
    """
    model = getattr(model, "module", model)
    two_branches = getattr(head_of(model), "one2one_cv2", None) is not None
    return EndToEndCriterion(model, **options) if two_branches else DetectionCriterion(model, **options)


class Refusal:
    """Stands in the place of a class whose losses or targets would be dropped."""

    replaced: ClassVar[type]
    remedy: ClassVar[str]

    def __init__(self, *_arguments: Any, **_named: Any) -> None:
        """Refuse.

        Raises:
            ValueError: Always; the text has the remedy.
        """
        raise ValueError(f"{self.replaced.__name__} computes what use() cannot replace; {self.remedy}")


class ReplacedAssigner(Unpickled, TaskAlignedAssigner):
    """The assigner under the signature of Ultralytics' own; pickled as that."""

    replaced: ClassVar[type]
    options: ClassVar[Options] = MappingProxyType({})

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Set the hyper-parameters; those of ``use()`` take the place of others."""
        super().__init__(*arguments, **{**named, **self.options})

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        names = ("topk", "num_classes", "alpha", "beta", "stride", "eps", "topk2")
        values = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return partial(self.replaced, **values), ()


def _criteria(options: Options) -> dict[str, type]:
    """Our classes by the name of the criterion that each replaces."""
    theirs, options = original(LOSSES, "v8DetectionLoss"), with_preset(options)
    classes = {"v8DetectionLoss": _replacing(DetectionCriterion, theirs, options=options)}
    for name in vars(import_module(LOSSES)):
        found = original(LOSSES, name)
        if name == "E2ELoss":
            classes[name] = _replacing(EndToEndCriterion, found, options=options)
        elif name in OTHER_CRITERIA:
            classes[name] = _replacing(Refusal, found, remedy=OTHER_CRITERIA[name])
        elif isinstance(found, type) and issubclass(found, theirs) and found is not theirs:
            classes[name] = _replacing(Refusal, found, remedy=WITHOUT if name in OTHER_ASSIGNMENT else KEEP_THEIRS)
    return classes


def _assigners(options: Options) -> dict[str, type]:
    """Our classes by the name of the assigner that each replaces."""
    name = "TaskAlignedAssigner"
    if "min_box_side" not in options:
        release_preset()  # it refuses areas that strides do not give here
    classes = {name: _replacing(ReplacedAssigner, original(LOSSES, name), options=options)}
    present = [name for name in OTHER_ASSIGNERS if hasattr(import_module(LOSSES), name)]
    return classes | {name: _replacing(Refusal, original(LOSSES, name), remedy=WITHOUT) for name in present}


def _replacing(base: type, replaced: type, **attributes: Any) -> type:
    """A class of the same name, since others derive from it and ask ``isinstance``."""
    return type(replaced.__name__, (base,), {"replaced": replaced, "__doc__": base.__doc__, **attributes})
