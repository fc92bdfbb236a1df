"""Why a ground truth is learned or not: the assignment with everything that it was decided from.

:func:`explain_loss` takes what ``DetectionLoss`` takes, :func:`explain_assignment` what ``TaskAlignedAssigner`` takes.
:func:`describe` puts a reason into words, and ``yolo_loss.explain.document`` writes everything as one JSON document;
neither of these two loads torch. Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolo_loss.explain.explain import explain_assignment, explain_document, explain_loss, explain_padded
    from yolo_loss.explain.reasons import (
        Description,
        Facts,
        Outcome,
        Reason,
        Rival,
        describe,
        describe_flags,
        describe_outcome,
    )
    from yolo_loss.explain.structures import Explanation, LossShares, PairReport, TruthReport

__all__ = [
    "Description",
    "Explanation",
    "Facts",
    "LossShares",
    "Outcome",
    "PairReport",
    "Reason",
    "Rival",
    "TruthReport",
    "describe",
    "describe_flags",
    "describe_outcome",
    "explain_assignment",
    "explain_document",
    "explain_loss",
    "explain_padded",
]

_NAMES_OF = {
    "explain": "explain_assignment explain_document explain_loss explain_padded",
    "reasons": "Description Facts Outcome Reason Rival describe describe_flags describe_outcome",
    "structures": "Explanation LossShares PairReport TruthReport",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
