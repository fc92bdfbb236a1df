"""An explanation as one JSON document, which pages, reports and the service share.

This module imports numpy and the standard library only. The document, version 1, is an object of

* ``format`` (``yolo-assigner explanation``), ``version`` (1), ``model`` (its name, or null);
* ``parameters``: the hyper-parameters, as a contract has them: ``topk``, ``alpha``, ``beta``, ``strides``, ...;
* ``imgsz``: height and width in pixels;
* ``levels``: for each ``stride``, ``height`` and ``width`` in cells, and ``first_anchor``, the index of its first
  anchor. Anchors are numbered level by level, row by row; the one in row y and column x of its level has its centre at
  ((x + 0.5) stride, (y + 0.5) stride) pixels;
* ``outcomes``: the words that the numbers in ``outcome`` stand for;
* ``listed_side``: only where pairs are also listed that would be candidates with this ``min_box_side``; those that are
  none have the outcome ``outside`` and rank 0;
* ``reasons``: the number of ground truths with each reason, those of ``yolo_loss.explain.Reason`` in lower case;
* ``loss``: null, or ``total``, which is the loss, and ``box``, ``cls``, ``dfl`` with their gains;
* ``images``: for each image
    * ``loss``: null, or ``total``, the image's part of the loss; ``background``, the part of ``total`` that belongs to
      no ground truth; and ``box``, ``cls``, ``dfl``, ``target_scores``, its sums without gains;
    * ``ground_truths``: a list, below;
    * ``pairs``: null, or its candidates as columns of equal length: ``slot``, ``anchor``, ``level``, ``iou``,
      ``score``, ``metric``, ``rank``, ``outcome``, ``lost_to`` (-1: nobody) and ``weight``.

A ground truth has ``slot``, its place in the image counted from 0, ``label``, ``bbox`` (x1, y1, x2, y2 in pixels); the
fields of ``yolo_loss.explain.TruthReport`` by their names, with the reason in a word and null in the place of -1;
``sentence`` and ``remedy``, the reason in words and what would help; ``flags``, a list of ``flag`` (``clipped``,
``duplicate`` or ``weak``), ``sentence`` and ``remedy``; ``rivals``, a list of ``slot`` and ``anchors``, who took how
many of its chosen anchors, most first; and ``loss``: null, or ``total``, its part of the loss, and its sums ``box``,
``cls`` and ``dfl`` without gains. With R = 1 the third term is called ``l1`` in the place of ``dfl``.

Numbers of ground truths, images and losses have six digits. Numbers that are not finite are null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolo_loss.explain.listing import OUTSIDE_WORD
from yolo_loss.explain.reasons import Facts, Outcome, Reason, Rival, describe, describe_flags

Array = NDArray[Any]

FORMAT, VERSION = "yolo-assigner explanation", 1
NO_INDEX = -1
PAIR_COLUMNS = ("slot", "anchor", "level", "iou", "score", "metric", "rank", "outcome", "lost_to", "weight")
INDICES = ("lost_to", "best_iou_anchor", "best_score_anchor", "best_metric_anchor", "duplicate_of")
TRUTH_FIELDS = (
    "num_candidates",
    "num_chosen",
    "num_lost",
    "lost_to",
    "num_assigned",
    "weight_sum",
    "best_iou",
    "best_iou_anchor",
    "best_score",
    "best_score_anchor",
    "best_metric",
    "best_metric_anchor",
    "nearest_distance",
    "helping_side",
    "clipped_share",
    "duplicate_of",
    "weak",
)
# Everything that a document with a loss is made of.
DOCUMENT_OUTPUTS = (
    "loss",
    "loss_items",
    "image_sums",
    "truth_sums",
    "truth_loss",
    "background_loss",
    "reason",
    *TRUTH_FIELDS,
    "pair_image",
    *(f"pair_{name}" for name in PAIR_COLUMNS),
)


class Subject(NamedTuple):
    """What is explained.

    Attributes:
        gt_labels: (B, M, 1).
        gt_bboxes: (B, M, 4) pixel xyxy.
        counts: (B,) ground truths of each image; the slots behind them are padding, and left out.
        imgsz: (height, width) in pixels.
        level_sizes: Cells (H_i, W_i) of each level.
        parameters: Hyper-parameters by name; ``strides`` and ``reg_max`` are read.
        model: Name of the model; None: none.
        listed_side: With this ``min_box_side`` all pairs would be candidates; None: all are.
    """

    gt_labels: Array
    gt_bboxes: Array
    counts: Array
    imgsz: tuple[int, int]
    level_sizes: Sequence[tuple[int, int]]
    parameters: Mapping[str, Any]
    model: str | None = None
    listed_side: float | None = None

    @property
    def terms(self) -> tuple[str, str, str]:
        """Names of the three losses."""
        return "box", "cls", "l1" if self.parameters["reg_max"] == 1 else "dfl"


def build_document(outputs: Mapping[str, Array], subject: Subject, *, pairs: bool = True) -> dict[str, Any]:
    """Write an explanation as plain types, but for the columns of pairs, which are arrays.

    Args:
        outputs: Fields of ``TruthReport``, ``PairReport`` and, optionally, ``LossShares`` by name.
        subject: What was explained.
        pairs: Whether to list the candidates.

    Returns:
        The document; :func:`dump_document` or a library that writes arrays makes it JSON.
    """
    images = [_image(outputs, subject, image, pairs) for image in range(len(subject.counts))]
    found = [truth["reason"] for image in images for truth in image["ground_truths"]]
    loss = None
    if "loss" in outputs:
        loss = {"total": _number(outputs["loss"]), **_named(subject.terms, outputs["loss_items"])}
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": subject.model,
        "parameters": dict(subject.parameters),
        "imgsz": list(subject.imgsz),
        "levels": _levels(subject),
        "outcomes": [*(outcome.word for outcome in Outcome), OUTSIDE_WORD],
        **({} if subject.listed_side is None else {"listed_side": subject.listed_side}),
        "reasons": {reason.word: found.count(reason.word) for reason in Reason if reason.word in found},
        "loss": loss,
        "images": images,
    }


def dump_document(document: Mapping[str, Any]) -> str:
    """Write a document as JSON."""
    return json.dumps(document, default=_plain, allow_nan=False, separators=(",", ":"))


def _plain(array: Array) -> list[Any]:
    if array.dtype.kind != "f":
        return list(array.tolist())
    # By way of text, which has no more digits than the type.
    values = array.astype(str).astype(np.float64)
    finite = np.isfinite(values)
    return [value if known else None for value, known in zip(values.tolist(), finite.tolist(), strict=True)]


def _levels(subject: Subject) -> list[dict[str, Any]]:
    levels, first = [], 0
    for stride, (height, width) in zip(subject.parameters["strides"], subject.level_sizes, strict=True):
        levels.append({"stride": stride, "height": height, "width": width, "first_anchor": first})
        first += height * width
    return levels


def _image(outputs: Mapping[str, Array], subject: Subject, image: int, pairs: bool) -> dict[str, Any]:
    begin, end = np.searchsorted(outputs["pair_image"], (image, image + 1))
    columns = {name: outputs[f"pair_{name}"][begin:end] for name in PAIR_COLUMNS}
    rivals = _rivals(columns["slot"], columns["lost_to"], int(subject.counts[image]))
    truths = [_truth(outputs, subject, (image, slot), found) for slot, found in enumerate(rivals)]
    loss = None
    if "loss" in outputs:
        background = _number(outputs["background_loss"][image])
        total = _number(outputs["background_loss"][image] + outputs["truth_loss"][image].sum())
        sums = _named((*subject.terms, "target_scores"), outputs["image_sums"][image])
        loss = {"total": total, "background": background, **sums}
    return {"loss": loss, "ground_truths": truths, "pairs": columns if pairs else None}


def _rivals(slot: Array, lost_to: Array, count: int) -> list[list[Rival]]:
    """Who took anchors of each ground truth, most first."""
    lost = lost_to != NO_INDEX
    found, counts = np.unique(np.stack((slot[lost], lost_to[lost])), axis=1, return_counts=True)
    rivals: list[list[Rival]] = [[] for _ in range(count)]
    for (loser, winner), number in zip(found.T.tolist(), counts.tolist(), strict=True):
        rivals[loser].append(Rival(winner, number))
    return [sorted(row, key=lambda rival: (-rival.anchors, rival.slot)) for row in rivals]


def _truth(
    outputs: Mapping[str, Array], subject: Subject, place: tuple[int, int], rivals: list[Rival]
) -> dict[str, Any]:
    values = {name: _value(name, outputs[name][place]) for name in TRUTH_FIELDS}
    reason = Reason(int(outputs["reason"][place]))
    facts = Facts(
        num_candidates=int(outputs["num_candidates"][place].sum()),
        best_iou=float(outputs["best_iou"][place]),
        best_score=float(outputs["best_score"][place]),
        num_chosen=values["num_chosen"],
        num_assigned=values["num_assigned"],
        nearest_distance=float(outputs["nearest_distance"][place]),
        helping_side=float(outputs["helping_side"][place]),
        rivals=rivals,
    )
    loss = None
    if "loss" in outputs:
        loss = {"total": _number(outputs["truth_loss"][place]), **_named(subject.terms, outputs["truth_sums"][place])}
    return {
        "slot": place[1],
        "label": int(subject.gt_labels[place][0]),
        "bbox": [_number(side) for side in subject.gt_bboxes[place]],
        "reason": reason.word,
        **describe(reason, facts)._asdict(),
        **values,
        "flags": _flags(values),
        "rivals": [rival._asdict() for rival in rivals],
        "loss": loss,
    }


def _flags(values: Mapping[str, Any]) -> list[dict[str, str]]:
    duplicate = NO_INDEX if values["duplicate_of"] is None else values["duplicate_of"]
    share, weak = values["clipped_share"], values["weak"]
    words = (("clipped", share > 0), ("duplicate", duplicate >= 0), ("weak", weak))
    described = describe_flags(clipped_share=share, duplicate_of=duplicate, weak=weak)
    return [
        {"flag": word, **text._asdict()}
        for word, text in zip((word for word, holds in words if holds), described, strict=True)
    ]


def _value(name: str, value: Any) -> Any:
    """A field of ``TruthReport`` at one ground truth."""
    if name in INDICES:
        return None if value == NO_INDEX else int(value)
    plain = value.tolist()
    return _number(plain) if isinstance(plain, float) else plain


def _number(value: Any) -> float | None:
    """Six digits of a number; None if it is not finite."""
    return float(f"{float(value):.6g}") if math.isfinite(value) else None


def _named(names: Sequence[str], values: Array) -> dict[str, float | None]:
    return {name: _number(value) for name, value in zip(names, values, strict=True)}
