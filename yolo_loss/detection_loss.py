"""The criterion for a detector object, as YOLO training code builds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolo_loss.criterion import DetectionLoss
from yolo_loss.option_checks import stride_list
from yolo_loss.results import Gains


class v8DetectionLoss(DetectionLoss):  # noqa: N801  (the name users of YOLO code know)
    """``DetectionLoss`` with its numbers read from a detector.

    Works with ``models.DetectionModel`` and with any detector whose ``model[-1]`` has ``nc``, ``reg_max`` and
    ``stride``, and whose ``args`` holds the gains ``box``, ``cls`` and ``dfl``.
    """

    def __init__(self, model: Any, tal_topk: int = 10, tal_topk2: int | None = None, **options: Any) -> None:
        """Read the head's numbers and the gains.

        Args:
            model: The detector; one wrapped for data-parallel training is unwrapped.
            tal_topk: Candidates per ground truth.
            tal_topk2: Anchors each ground truth keeps in the end; None: all it won.
            **options: Passed to ``DetectionLoss``: ``preset``, ``class_loss`` and others.

        Raises:
            ValueError: The head or the gains are not there, or a number is none or out of range.
        """
        model = getattr(model, "module", model)
        head = _head_of(model)
        super().__init__(
            num_classes=head.nc,
            strides=head.stride,
            reg_max=head.reg_max,
            topk=tal_topk,
            topk2=tal_topk2,
            gains=_gains_of(model),
            **options,
        )


def _head_of(model: Any) -> Any:
    try:
        head = model.model[-1]
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"{type(model).__name__} has no model[-1]; pass the detector, not its trainer") from error
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


def _gains_of(model: Any) -> dict[str, Any]:
    args = getattr(model, "args", None)
    gains = args if isinstance(args, Mapping) else vars(args) if hasattr(args, "__dict__") else {}
    missing = [name for name in Gains._fields if name not in gains]
    if missing:
        raise ValueError(
            f"model.args lacks the gains {', '.join(missing)}; set model.args to an object or a dict with box, cls and "
            "dfl, or use DetectionLoss(gains=...)"
        )
    return {name: gains[name] for name in Gains._fields}
