"""Counts over a whole table, read row by row: memory does not grow with it."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from yolo_assigner.audit.structures import BadFile, ShardFacts

ASSIGNED, INVALID, OUTSIDE, NO_ANCHOR = "assigned", "invalid", "outside", "no_anchor"
# What a box that is in the image can be.
LEARNABLE = (ASSIGNED, NO_ANCHOR, "no_overlap", "no_score", "contested")
REASONS = (*LEARNABLE, OUTSIDE, INVALID)
# Bounds of the sizes, the root of a box's area in pixels of the detector's input.
SIZES = (8, 16, 32, 64, 128, 256)
# Values of min_box_side for which the boxes that get a candidate are counted.
SIDES = (4, 6, 8, 12, 16, 24, 32)
NO_LEVEL = "none"
# Columns that are read.
NEEDED = (
    "image",
    "slot",
    "label",
    "x1",
    "y1",
    "x2",
    "y2",
    "reason",
    "stride",
    "num_candidates",
    "num_assigned",
    "weight_sum",
    "best_iou",
    "helping_side",
    "clipped_share",
    "duplicate_of",
    "weak",
    "side_assigned",
    "larger_candidates",
    "finer_candidates",
)

Reasons = dict[str, Counter[str]]


class SizeCandidates(NamedTuple):
    """Candidates of the boxes of one size.

    Attributes:
        boxes: Their number.
        without: Those without any candidate.
        mean: Candidates of a box, on the mean.
        per_level: The same by level.
    """

    boxes: int
    without: int
    mean: float
    per_level: list[float]


class Help(NamedTuple):
    """What other settings would give to boxes that are in the image; each is computed from the boxes.

    Attributes:
        unassigned: Boxes that no anchor learns now.
        without_candidate: Those among them without any candidate.
        side_gained: Unassigned ones that anchors learn with the ``min_box_side`` that was tried, from the same
            predictions.
        side_lost: Assigned ones that no anchor learns with it.
        by_side: Boxes without a candidate that get one, by ``min_box_side``.
        larger: Boxes without a candidate that get one in the larger input that was tried.
        finer: Those that get one by the finer level that was tried.
    """

    unassigned: int
    without_candidate: int
    side_gained: int
    side_lost: int
    by_side: dict[str, int]
    larger: int
    finer: int


class Summary(NamedTuple):
    """Counts over a data set.

    Attributes:
        images: Pictures that were read.
        unlabelled: Those among them without labels.
        ground_truths: Objects.
        bad: Files that could not be used.
        reasons: Objects by reason.
        by_class: Reasons by class.
        by_size: Reasons by size of the box in the detector's input.
        by_level: Reasons by stride of the level with the best candidate; ``none`` without candidates.
        flags: Objects that are ``clipped``, ``duplicate`` and ``weak``.
        clipped_boxes: Share of the assigned objects with sides that reg_max cannot express.
        clipped_sides: Share of such sides, the mean over assigned objects.
        candidates: Candidates by size.
        help: What other settings would give.
        parameters: The criterion's hyper-parameters.
        tried: Values of ``min_box_side``, ``imgsz`` and ``stride`` that ``help`` is about.
    """

    images: int
    unlabelled: int
    ground_truths: int
    bad: tuple[BadFile, ...]
    reasons: dict[str, int]
    by_class: Reasons
    by_size: Reasons
    by_level: Reasons
    flags: dict[str, int]
    clipped_boxes: float
    clipped_sides: float
    candidates: dict[str, SizeCandidates]
    help: Help
    parameters: dict[str, Any]
    tried: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain types."""
        return {
            **self._asdict(),
            "bad": [bad._asdict() for bad in self.bad],
            "candidates": {size: found._asdict() for size, found in self.candidates.items()},
            "help": self.help._asdict(),
        }


def summarise(rows: Iterable[Mapping[str, Any]], facts: Sequence[ShardFacts], class_names: Sequence[str]) -> Summary:
    """Count over a table.

    Args:
        rows: With the columns ``NEEDED``; read once.
        facts: Of all shards.
        class_names: By class; empty: classes are called by their numbers.
    """
    tally = _Tally(class_names)
    for row in rows:
        tally.add(row)
    described = next((one for one in facts if one.parameters), None)
    assigned = tally.reasons[ASSIGNED]
    return Summary(
        images=sum(one.images for one in facts),
        unlabelled=sum(one.unlabelled for one in facts),
        ground_truths=tally.reasons.total(),
        bad=tuple(bad for one in facts for bad in one.bad),
        reasons={reason: tally.reasons[reason] for reason in REASONS if tally.reasons[reason]},
        by_class=dict(tally.by_class),
        by_size={size: tally.by_size[size] for size in size_names() if size in tally.by_size},
        by_level={level: tally.by_level[level] for level in sorted(tally.by_level, key=_level_order)},
        flags={flag: tally.flags[flag] for flag in ("clipped", "duplicate", "weak")},
        clipped_boxes=tally.flags["clipped"] / max(assigned, 1),
        clipped_sides=tally.clipped_sides / max(assigned, 1),
        candidates={size: tally.candidates(size) for size in size_names() if size in tally.boxes},
        help=tally.help(),
        parameters=described.parameters if described else {},
        tried=described.tried if described else {},
    )


def worst_rows(rows: Iterable[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Find the rows to look at first: unassigned ones, then flagged ones, then the others, small weights first.

    Args:
        rows: Read once.
        count: How many to keep.
    """
    return heapq.nsmallest(count, rows, key=_order)


def size_name(row: Mapping[str, Any]) -> str:
    """Name the size of a row's box, as ``16 to 32``; of a box without an area, the smallest."""
    area = max(row["x2"] - row["x1"], 0.0) * max(row["y2"] - row["y1"], 0.0)
    side = math.sqrt(area) if math.isfinite(area) else 0.0
    return size_names()[sum(side >= bound for bound in SIZES)]


def size_names() -> list[str]:
    """Names of all sizes, the smallest first."""
    between = [f"{low} to {high}" for low, high in pairwise(SIZES)]
    return [f"below {SIZES[0]}", *between, f"from {SIZES[-1]}"]


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    flagged = row["weak"] or row["clipped_share"] > 0 or row["duplicate_of"] is not None
    group = 0 if row["reason"] != ASSIGNED else 1 if flagged else 2
    return (group, row["weight_sum"], row["best_iou"], row["image"], row["slot"])


def _level_order(level: str) -> float:
    return math.inf if level == NO_LEVEL else float(level)


class _Tally:
    """Counts so far."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self.reasons: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.by_class: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.by_size: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.by_level: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.clipped_sides = 0.0
        self.boxes: Counter[str] = Counter()
        self.without: Counter[str] = Counter()
        self.per_level: dict[str, list[int]] = {}
        self.helped: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row."""
        reason, size = row["reason"], size_name(row)
        self.reasons[reason] += 1
        self.by_class[self._class(row["label"])][reason] += 1
        self.by_size[size][reason] += 1
        self.by_level[NO_LEVEL if row["stride"] is None else f"{row['stride']:g}"][reason] += 1
        for flag, holds in (
            ("clipped", row["clipped_share"] > 0),
            ("duplicate", row["duplicate_of"] is not None),
            ("weak", row["weak"]),
        ):
            self.flags[flag] += bool(holds)
        self.clipped_sides += row["clipped_share"]
        if reason in LEARNABLE:
            self._add_candidates(row, size)
            self._add_help(row)

    def candidates(self, size: str) -> SizeCandidates:
        """Candidates of the boxes of one size."""
        boxes, levels = self.boxes[size], self.per_level[size]
        return SizeCandidates(boxes, self.without[size], sum(levels) / boxes, [count / boxes for count in levels])

    def help(self) -> Help:
        """What other settings would give."""
        unassigned = sum(self.reasons[reason] for reason in LEARNABLE if reason != ASSIGNED)
        by_side = {str(side): self.helped[f"side {side}"] for side in SIDES}
        helped = self.helped
        return Help(
            unassigned,
            self.reasons[NO_ANCHOR],
            helped["gained"],
            helped["lost"],
            by_side,
            helped["larger"],
            helped["finer"],
        )

    def _class(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def _add_candidates(self, row: Mapping[str, Any], size: str) -> None:
        found = row["num_candidates"]
        self.boxes[size] += 1
        self.without[size] += not any(found)
        self.per_level[size] = [a + b for a, b in zip(self.per_level.get(size, [0] * len(found)), found, strict=True)]

    def _add_help(self, row: Mapping[str, Any]) -> None:
        assigned, with_side = row["reason"] == ASSIGNED, row["side_assigned"] > 0
        self.helped["gained"] += with_side and not assigned
        self.helped["lost"] += assigned and not with_side
        if row["reason"] == NO_ANCHOR:
            self.helped["larger"] += row["larger_candidates"] > 0
            self.helped["finer"] += row["finer_candidates"] > 0
            for side in SIDES:
                self.helped[f"side {side}"] += row["helping_side"] <= side
