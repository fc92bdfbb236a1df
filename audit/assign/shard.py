"""One shard, one call: from a file of stored predictions to a file of targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from yolo_assigner.audit.assign.targets import Targets, read_target_facts, write_targets
from yolo_assigner.audit.runner import Progress
from yolo_assigner.audit.shard import criterion_of
from yolo_assigner.audit.stored import Stored, read_stored
from yolo_assigner.audit.structures import BadFile, BadFileError, Shard
from yolo_loss.anchors import decode_levels
from yolo_loss.collate import pad_to_device
from yolo_loss.criterion import DetectionLoss
from yolo_loss.execution.channels import ClassScores
from yolo_loss.explain.explain import image_size_of, parameters_of
from yolo_loss.predictions import join_predictions


class TargetFacts(NamedTuple):
    """What is said of a shard besides its targets.

    Attributes:
        digest: Of the shard.
        images: Pictures.
        objects: Their objects.
        assigned: Anchors that learn one.
        parameters: The criterion's hyper-parameters.
        bad: Why there are no targets; empty where there are.
    """

    digest: str
    images: int = 0
    objects: int = 0
    assigned: int = 0
    parameters: dict[str, Any] = {}  # noqa: RUF012  (never changed)
    bad: tuple[BadFile, ...] = ()


def assign_shard(shard: Shard, on_progress: Progress | None = None) -> TargetFacts:
    """Assign a file of stored predictions, and write its targets.

    The call depends on nothing but its argument and the files that this names, so that it runs in any process, on any
    machine that sees the files. The file appears complete or not at all. Where it is there already, and neither the
    shard nor its predictions changed since, nothing is computed.

    Args:
        shard: One file of predictions, and the file to write.
        on_progress: Called with 1 when it is dealt with.

    Returns:
        What the file says besides its rows. Predictions that cannot be used are named there; they have no file.

    Raises:
        OSError: The file cannot be written.
        ValueError: A hyper-parameter is invalid.
    """
    facts = finished(shard)
    if facts is None:
        (item,) = shard.items
        try:
            stored = read_stored(item, shard.settings)
        except BadFileError as error:
            Path(shard.target).unlink(missing_ok=True)  # of predictions that there were before
            facts = TargetFacts(shard.digest, bad=(BadFile(item.name, str(error)),))
        else:
            facts = _assign(shard, stored)
    if on_progress is not None:
        on_progress(1)
    return facts


def finished(shard: Shard) -> TargetFacts | None:
    """Read what a shard's file says, if that is there and up to date."""
    content = read_target_facts(Path(shard.target))
    if content is None or content.get("digest") != shard.digest:
        return None
    return TargetFacts(**{**content, "bad": ()})


def failed(shard: Shard, bad: BadFile) -> TargetFacts:
    """Facts of a shard that could not be computed."""
    return TargetFacts(shard.digest, bad=(bad,))


@torch.no_grad()
def _targets(stored: Stored, criterion: DetectionLoss) -> Targets:
    predictions = join_predictions(stored.maps, criterion.strides, stored.num_classes, criterion.reg_max)
    size, points = image_size_of(criterion, predictions), predictions.anchor_points
    columns = stored.batch["batch_idx"], stored.batch["cls"], stored.batch["bboxes"]
    truth = pad_to_device(columns, points, size, len(stored.names), None)
    boxes = decode_levels(predictions.pred_distri, points, criterion.reg_max) * predictions.strides
    scores = ClassScores(predictions.pred_scores, points.dtype, logits=True)
    assignment = criterion.assigner.assign(scores, boxes, points * predictions.strides, truth)
    return Targets(stored.names, truth, assignment, stored.num_classes, size)


def _assign(shard: Shard, stored: Stored) -> TargetFacts:
    settings = shard.settings
    criterion = criterion_of(stored.num_classes, settings.strides, settings.reg_max, settings.loss)
    targets = _targets(stored, criterion)
    image = stored.batch["batch_idx"]
    assigned = int(targets.assignment.fg_mask.sum())
    facts = TargetFacts(shard.digest, len(stored.names), len(image), assigned, parameters_of(criterion))
    counts = torch.bincount(image, minlength=len(stored.names))
    write_targets(Path(shard.target), targets, counts, {**facts._asdict(), "bad": []})
    return facts
