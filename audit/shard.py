"""One shard, one call: from pictures or stored predictions to a file with a row for every ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolo_assigner.audit.detector import load_detector, raw_maps
from yolo_assigner.audit.pictures import Example, place, read_example
from yolo_assigner.audit.rows import Picture, Tables, explain_rows
from yolo_assigner.audit.runner import Progress
from yolo_assigner.audit.stored import read_stored
from yolo_assigner.audit.structures import BadFile, BadFileError, Item, LossOptions, Shard, ShardFacts
from yolo_assigner.audit.table import read_facts, write_shard
from yolo_assigner.models import DetectionModel
from yolo_loss.criterion import DetectionLoss


class _Findings:
    """What a shard's pictures gave so far."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.bad: list[BadFile] = []
        self.images = self.unlabelled = 0
        self.parameters: dict[str, Any] = {}
        self.tried: dict[str, float] = {}

    def add(self, tables: Tables, boxes: Sequence[int]) -> None:
        """Add a batch of pictures, given the number of boxes of each."""
        self.rows += tables.rows
        self.images += len(boxes)
        self.unlabelled += sum(count == 0 for count in boxes)
        self.parameters, self.tried = tables.parameters, tables.tried._asdict()


def audit_shard(shard: Shard, on_progress: Progress | None = None) -> ShardFacts:
    """Explain every ground truth of a shard and write them to its file.

    The call depends on nothing but its argument and the files that this names, so that it runs in any process, on any
    machine that sees the files. The file appears complete or not at all. Where it is there already, and neither the
    shard nor its files changed since, nothing is computed.

    Args:
        shard: What to explain, and the file to write.
        on_progress: Called with the number of pictures that were dealt with since the last call.

    Returns:
        What the file says besides its rows. Files that cannot be used are listed there.

    Raises:
        OSError: The file cannot be written, or there are no weights.
        ValueError: The weights are no detector's, or a hyper-parameter is invalid.
    """
    target, report = Path(shard.target), on_progress or (lambda _: None)
    facts = finished(shard)
    if facts is not None:
        report(len(shard.items))
        return facts
    findings = _Findings()
    if shard.stored:
        _explain_stored(shard, findings, report)
    else:
        _explain_pictures(shard, load_detector(Path(shard.settings.weights)), findings, report)
    facts = ShardFacts(
        shard.digest,
        findings.images,
        findings.unlabelled,
        len(findings.rows),
        tuple(findings.bad),
        findings.parameters,
        findings.tried,
    )
    write_shard(target, findings.rows, facts)
    return facts


def finished(shard: Shard) -> ShardFacts | None:
    """Read what a shard's file says, if that is there and up to date."""
    facts = read_facts(Path(shard.target))
    return facts if facts is not None and facts.digest == shard.digest else None


def failed(shard: Shard, bad: BadFile) -> ShardFacts:
    """Facts of a shard that could not be computed, and has no file."""
    return ShardFacts(shard.digest, 0, 0, 0, (bad,), {}, {})


def criterion_of(num_classes: int, strides: Sequence[float], reg_max: int, options: LossOptions) -> DetectionLoss:
    """Make the criterion whose assignment is explained.

    Raises:
        ValueError: A hyper-parameter is invalid.
    """
    return DetectionLoss(num_classes, strides, reg_max, **options.given())


def _explain_pictures(shard: Shard, detector: DetectionModel, findings: _Findings, report: Progress) -> None:
    settings, head = shard.settings, detector.head
    criterion = criterion_of(head.nc, head.strides, head.reg_max, settings.loss)
    for first in range(0, len(shard.items), settings.batch):
        items = shard.items[first : first + settings.batch]
        examples = [example for item in items if (example := _read(item, shard, head.nc, findings)) is not None]
        if examples:
            maps = raw_maps(detector, torch.stack([example.image for example in examples]))
            pictures = [Picture(example.name, example.labels.boxes) for example in examples]
            tables = explain_rows(criterion, maps, batch_of(examples), pictures, settings.changes)
            findings.add(tables, [len(example.labels.cls) for example in examples])
        report(len(items))


def _read(item: Item, shard: Shard, num_classes: int, findings: _Findings) -> Example | None:
    try:
        return read_example(item, shard.settings.imgsz, num_classes, shard.categories)
    except BadFileError as error:
        findings.bad.append(BadFile(item.name, str(error)))
        return None


def batch_of(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Join the ground truth of pictures, in the detector's square."""
    labels = [example.labels for example in examples]
    batch = {
        "batch_idx": torch.cat([torch.full_like(one.cls, image) for image, one in enumerate(labels)]),
        "cls": torch.cat([one.cls for one in labels]),
        "bboxes": torch.cat([place(example.labels.boxes, example.frame) for example in examples]),
    }
    ignored = torch.cat([place(example.labels.ignored, example.frame) for example in examples])
    if len(ignored):
        counts = torch.tensor([len(one.ignored) for one in labels])
        batch |= {"ignore_idx": torch.arange(len(labels)).repeat_interleave(counts), "ignore_bboxes": ignored}
    return batch


def _explain_stored(shard: Shard, findings: _Findings, report: Progress) -> None:
    settings = shard.settings
    for item in shard.items:
        try:
            stored = read_stored(item, settings)
        except BadFileError as error:
            findings.bad.append(BadFile(item.name, str(error)))
        else:
            criterion = criterion_of(stored.num_classes, settings.strides, settings.reg_max, settings.loss)
            image, boxes = stored.batch["batch_idx"], stored.batch["bboxes"]
            pictures = [Picture(name, boxes[image == number]) for number, name in enumerate(stored.names)]
            tables = explain_rows(criterion, stored.maps, stored.batch, pictures, settings.changes)
            findings.add(tables, [len(picture.boxes) for picture in pictures])
        report(1)
