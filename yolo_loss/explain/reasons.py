"""Reasons why a ground truth got no anchor, outcomes of single candidates, and both in words.

This module imports the standard library only: the service, which loads no torch, puts the same reasons into the same
words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

# The thresholds of the flags.
DUPLICATE_IOU = 0.95
WEAK_SHARE = 0.1
# Ground truths that a sentence names; the others are counted.
MOST_NAMED = 3


class Reason(IntEnum):
    """Why a ground truth has no anchor: the first in this order that holds; ``ASSIGNED`` where it has one."""

    ASSIGNED = 0
    INVALID = 1
    OUTSIDE = 2
    NO_ANCHOR = 3
    NO_OVERLAP = 4
    NO_SCORE = 5
    CONTESTED = 6

    @property
    def word(self) -> str:
        """The name in documents, as ``no_anchor``."""
        return self.name.lower()


class Outcome(IntEnum):
    """What became of a candidate, a pair of a ground truth and an anchor inside it.

    ``BELOW_TOPK`` includes candidates whose metric is 0, which are never chosen.
    """

    ASSIGNED = 0
    BELOW_TOPK = 1
    LOST_TO = 2
    DROPPED_BY_TOPK2 = 3

    @property
    def word(self) -> str:
        """The name in documents, as ``below_topk``."""
        return self.name.lower()


class Description(NamedTuple):
    """A reason or a flag in words.

    Attributes:
        sentence: What is the case.
        remedy: What would help; empty where nothing has to.
    """

    sentence: str
    remedy: str = ""


class Rival(NamedTuple):
    """Another ground truth of the same image that took anchors.

    Attributes:
        slot: Its place in the image, counted from 0.
        anchors: How many of the chosen anchors it took.
    """

    slot: int
    anchors: int


class Facts(NamedTuple):
    """What a description of a ground truth needs besides the reason.

    Attributes:
        num_candidates: Its candidates on all levels.
        best_iou: The largest u among them.
        best_score: The largest s among them.
        num_chosen: Candidates that entered the top k.
        num_assigned: Anchors that it has in the end.
        nearest_distance: Distance of the nearest anchor's centre from the box, pixels.
        helping_side: The smallest whole ``min_box_side`` with which it gets a candidate, pixels.
        rivals: Who took the chosen anchors.
    """

    num_candidates: int = 0
    best_iou: float = 0.0
    best_score: float = 0.0
    num_chosen: int = 0
    num_assigned: int = 0
    nearest_distance: float = 0.0
    helping_side: float = 0.0
    rivals: Sequence[Rival] = ()


def describe(reason: int, facts: Facts) -> Description:
    """Put a reason into words, with what would help.

    Args:
        reason: A ``Reason``.
        facts: Numbers of the ground truth.

    Raises:
        ValueError: There is no such reason.
    """
    return _DESCRIPTIONS[Reason(reason)](facts)


def _assigned(facts: Facts) -> Description:
    return Description(f"{_count(facts.num_assigned, 'anchor')} learn{'s' if facts.num_assigned == 1 else ''} it.")


def _invalid(_: Facts) -> Description:
    return Description(
        "The box does not count: it is masked out, has no area, or has a coordinate that is not finite.",
        "Correct its coordinates, or remove it from the labels.",
    )


def _outside(_: Facts) -> Description:
    return Description(
        "No part of the box lies in the image.",
        "Correct its coordinates; drop boxes that an augmentation moves out of the image.",
    )


def _no_anchor(facts: Facts) -> Description:
    return Description(
        f"No anchor's centre lies inside the box; the nearest is {facts.nearest_distance:.1f} pixels away from it.",
        f"With min_box_side={facts.helping_side:g} it gets a candidate (the preset ultralytics-8.4 sets the head's "
        "second stride); larger images or a head with a finer level help, too.",
    )


def _no_overlap(facts: Facts) -> Description:
    return Description(
        f"No box that is predicted at its {_count(facts.num_candidates, 'candidate')} overlaps it: every IoU is 0.",
        "Early in a training this is ordinary, and ends as similar objects are learned. If it lasts, check the box's "
        "coordinates, or give it more candidates by a larger min_box_side.",
    )


def _no_score(facts: Facts) -> Description:
    return Description(
        f"A predicted box overlaps it (IoU {facts.best_iou:.2g}), but every metric is 0: the largest score of its "
        f"class at its {_count(facts.num_candidates, 'candidate')} is {facts.best_score:.2g}.",
        "Check its class; a smaller alpha lets the IoU decide, and a smaller beta keeps powers of small IoUs above 0.",
    )


def _contested(facts: Facts) -> Description:
    chosen = f"All {facts.num_chosen} anchors" if facts.num_chosen > 1 else "The only anchor"
    return Description(
        f"{chosen} that it chose went to {_rivals(facts.rivals)} more with the boxes predicted there.",
        "Check whether the labels repeat one object; with a larger topk it also chooses anchors that no other ground "
        "truth wants, and a finer level or larger images put more anchors between crowded objects.",
    )


_DESCRIPTIONS: Mapping[Reason, Callable[[Facts], Description]] = {
    Reason.ASSIGNED: _assigned,
    Reason.INVALID: _invalid,
    Reason.OUTSIDE: _outside,
    Reason.NO_ANCHOR: _no_anchor,
    Reason.NO_OVERLAP: _no_overlap,
    Reason.NO_SCORE: _no_score,
    Reason.CONTESTED: _contested,
}


def describe_flags(*, clipped_share: float, duplicate_of: int, weak: bool) -> list[Description]:
    """Put the flags that are set into words, in the order clipped, duplicate, weak.

    Args:
        clipped_share: Share of the sides of assigned anchors that the head cannot express.
        duplicate_of: Slot of another ground truth that covers the same place; -1: none.
        weak: Whether its weights' sum is far below the image's median.
    """
    found = []
    if clipped_share > 0:
        found.append(
            Description(
                f"The head cannot express {100 * clipped_share:.0f} % of the sides of its anchors' targets: they are "
                "beyond the last bin.",
                "A larger reg_max, a further level of a coarser stride, or smaller images.",
            )
        )
    if duplicate_of >= 0:
        found.append(
            Description(
                f"Ground truth {duplicate_of} of the same image covers the same place (IoU above {DUPLICATE_IOU:g}).",
                "Remove one of the two if they are one object.",
            )
        )
    if weak:
        found.append(
            Description(
                f"Its anchors have a sum of weights below {WEAK_SHARE:g} of the image's median, so it is hardly "
                "learned.",
                "Look at its rivals and its best IoU; a larger topk, a larger min_box_side or larger images help.",
            )
        )
    return found


def describe_outcome(
    outcome: int,
    *,
    rank: int,
    topk: int,
    lost_to: int = -1,
    topk2: int | None = None,
    beaten: Sequence[int] | None = None,
) -> str:
    """Put the outcome of a candidate into words.

    Args:
        outcome: An ``Outcome``.
        rank: Its place among the ground truth's candidates by metric, counted from 1.
        topk: Candidates that each ground truth chooses.
        lost_to: Slot of the ground truth that took the anchor; -1: none.
        topk2: Anchors that each ground truth keeps; None: all it won.
        beaten: Slots of the other ground truths that chose the anchor; None: not known.

    Raises:
        ValueError: There is no such outcome.
    """
    match Outcome(outcome):
        case Outcome.ASSIGNED:
            return f"The anchor learns this ground truth{_why_won(rank, beaten)}."
        case Outcome.BELOW_TOPK:
            cause = "its metric is 0" if rank <= topk else f"it is number {rank} by metric, and topk is {topk}"
            return f"Not chosen: {cause}."
        case Outcome.LOST_TO:
            return f"Chosen, but ground truth {lost_to} overlaps more with the box predicted here."
        case Outcome.DROPPED_BY_TOPK2:
            return f"Won, but dropped: topk2 keeps {topk2} of the ground truth's anchors, those of larger metric."


def _why_won(rank: int, beaten: Sequence[int] | None) -> str:
    if beaten is None:
        return ""
    if not beaten:
        return f": number {rank} by metric, and no other chose the anchor"
    others = len(beaten) - MOST_NAMED
    named = ", ".join(map(str, beaten[:MOST_NAMED]))
    return (
        f": it overlaps more with the box predicted here than ground truth{'' if len(beaten) == 1 else 's'} {named}"
        f"{f' and {others} more' if others > 0 else ''}, which also chose the anchor"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _rivals(rivals: Sequence[Rival]) -> str:
    """Name the rivals, those that took most first, up to the verb."""
    ordered = sorted(rivals, key=lambda rival: (-rival.anchors, rival.slot))
    if len(ordered) <= 1:
        name = f"ground truth {ordered[0].slot}" if ordered else "another ground truth"
        return f"{name}, which overlaps"
    named = [f"{rival.slot} ({rival.anchors})" for rival in ordered[:MOST_NAMED]]
    others = len(ordered) - len(named)
    return f"ground truths {', '.join(named)}{f' and {others} more' if others else ''}, which overlap"
