"""Candidate pairs with their overlap and metric."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.channels import ClassScores
from yolo_loss.compilation import kernel
from yolo_loss.overlap import Measured, ciou_of_measured
from yolo_loss.pairs import Pairs, Runs, write_out
from yolo_loss.params import AssignerParams, power
from yolo_loss.segments import count_true, in_graph, keep_last, places_of, sum_per_segment


class Part(NamedTuple):
    """What the assignment of some images needs; all indices count from the first of them.

    Attributes:
        runs: Their candidates.
        scores: Class scores of all anchors.
        predicted: Predicted boxes, (b, A) each.
        wanted: Ground truths, (b, M) each.
        labels: (b, M).
    """

    runs: Runs
    scores: ClassScores
    predicted: Measured
    wanted: Measured
    labels: Tensor


class Candidates(NamedTuple):
    """Candidate pairs whose boxes overlap.

    Attributes:
        pairs: (P,) each, ordered by ground truth, then by anchor.
        overlap: (P,) u.
        metric: (P,) t = s^alpha * u^beta.
        per_slot: (B * M,) int64, how many each ground truth has.
    """

    pairs: Pairs
    overlap: Tensor
    metric: Tensor
    per_slot: Tensor


def find_candidates(part: Part, params: AssignerParams) -> Candidates:
    """The candidate pairs of some images."""
    pairs = write_out(part.runs)
    overlap = overlap_of_pairs(part.wanted, part.predicted, pairs)
    per_slot = sum_per_segment(part.runs.slot, part.runs.length, part.labels.shape[0] * part.labels.shape[1])
    if params.beta > 0:
        # A pair without overlap has metric 0: it is never chosen, and it wins no anchor from a pair that is.
        overlaps = keep_last(overlap > 0)
        per_slot = count_true(overlaps, per_slot)
        touching = places_of(overlaps)
        overlap = overlap.index_select(0, touching)
        pairs = Pairs(*(field.index_select(0, touching) for field in pairs))
    overlap, metric = metric_of_pairs(part.scores, part.labels, pairs, overlap, params)
    return Candidates(filler_aside(pairs, part.predicted.x1.numel()), overlap, metric, per_slot)


def filler_aside(pairs: Pairs, anchors: int) -> Pairs:
    """Pairs (P,); in a graph the last one's anchor is no real one but B * A, the number of all anchors."""
    if not in_graph():
        return pairs
    aside = torch.zeros_like(pairs.anchor[-1:]) + anchors
    return pairs._replace(anchor=torch.cat((pairs.anchor[:-1], aside)))


@kernel
def overlap_of_pairs(wanted: Measured, predicted: Measured, pairs: Pairs) -> Tensor:
    """CIoU of each pair, (P,)."""
    return ciou_of_measured(
        wanted.apply(lambda field: field.flatten().index_select(0, pairs.slot)),
        predicted.apply(lambda field: field.flatten().index_select(0, pairs.anchor)),
    )


@kernel
def metric_of_pairs(
    scores: ClassScores, labels: Tensor, pairs: Pairs, overlap: Tensor, params: AssignerParams
) -> tuple[Tensor, Tensor]:
    """Overlap u and metric t = s^alpha * u^beta of each pair; 0 where one is not a number or not above 0."""
    overlap = torch.where(overlap > 0, overlap, 0.0)
    own = scores.of_pairs(labels, pairs.slot, pairs.anchor)
    metric = power(own, params.alpha) * power(overlap, params.beta)
    return overlap, torch.where(metric > 0, metric, 0.0)
