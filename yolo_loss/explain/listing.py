"""Candidates that ground truths would have with a larger ``min_box_side``, listed beside those that they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_loss.explain.reasons import Outcome

OUTSIDE_WORD = "outside"
OUTSIDE = len(Outcome)  # follows the outcomes of candidates in a document's list
_NONE = {"pair_rank": 0, "pair_outcome": OUTSIDE, "pair_lost_to": -1, "pair_weight": 0}


def list_outside(outputs: Mapping[str, NDArray[Any]], wide: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Add the pairs of a wider explanation to an explanation, with the outcome ``OUTSIDE``.

    Args:
        outputs: Fields of an explanation by name.
        wide: The same with a larger ``min_box_side``.

    Returns:
        The outputs with all pairs of both, ordered by image, ground truth and anchor. The added ones have rank 0.
    """
    names = [name for name in outputs if name.startswith("pair_")]
    anchors = 1 + max((int(fields["pair_anchor"].max(initial=0)) for fields in (outputs, wide)), default=0)
    slots = outputs["reason"].shape[1]

    def keys(fields: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = (fields["pair_image"] * slots + fields["pair_slot"]) * anchors + fields[
            "pair_anchor"
        ]
        return found

    added = ~np.isin(keys(wide), keys(outputs))
    order = np.argsort(np.concatenate((keys(outputs), keys(wide)[added])), kind="stable")
    result = dict(outputs)
    for name in names:
        values = wide[name][added]
        values = np.full_like(values, _NONE[name]) if name in _NONE else values
        result[name] = np.concatenate((outputs[name], values))[order]
    return result
