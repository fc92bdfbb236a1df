"""What passes between the parts of an audit: plain values, which travel between processes and machines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

# Raised when what a shard holds, or how it is computed, changes: older shards are then computed again.
FORMAT_VERSION = 2


class BadFileError(ValueError):
    """A file of the data set cannot be used; it is named and counted, and the audit goes on."""


class BadFile(NamedTuple):
    """A file that cannot be used.

    Attributes:
        name: The file.
        fault: What is wrong with it, and the remedy.
    """

    name: str
    fault: str


class LossOptions(NamedTuple):
    """Hyper-parameters of the criterion, as ``DetectionLoss`` takes them; None: the preset's."""

    topk: int = 10
    alpha: float = 0.5
    beta: float = 6.0
    preset: str = "yolov8"
    min_box_side: float | None = None
    topk2: int | None = None

    def given(self) -> dict[str, Any]:
        """Those that are not None."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Changes(NamedTuple):
    """What is tried beside the set as it is; None: chosen from the strides and the image size.

    Attributes:
        min_box_side: Pixels; None: the second stride, or twice the ``min_box_side`` that is in use.
        imgsz: Pixels; None: twice the image size.
    """

    min_box_side: float | None = None
    imgsz: int | None = None


class Settings(NamedTuple):
    """How every shard of an audit is computed.

    Attributes:
        weights: The detector's state dict; empty for stored predictions.
        weights_digest: Digest of its content.
        imgsz: Side of the square, in pixels, that pictures are fitted into.
        batch: Pictures that the detector sees at once.
        strides: Of stored predictions, pixels per cell.
        reg_max: R, of stored predictions.
        loss: Hyper-parameters of the criterion.
        changes: What is tried beside.
    """

    weights: str = ""
    weights_digest: str = ""
    imgsz: int = 640
    batch: int = 16
    strides: tuple[float, ...] = (8, 16, 32)
    reg_max: int = 16
    loss: LossOptions = LossOptions()
    changes: Changes = Changes()


class Item(NamedTuple):
    """One picture with the place of its labels, or one file of stored predictions.

    Attributes:
        name: Its name in the table.
        path: The picture, or the file of predictions.
        label: Text file with YOLO labels, which may be missing; empty: ``annotations`` has them.
        annotations: COCO annotations of the picture.
    """

    name: str
    path: str
    label: str = ""
    annotations: tuple[Mapping[str, Any], ...] = ()


class Source(NamedTuple):
    """A data set.

    Attributes:
        items: In a fixed order.
        root: Folder of the pictures, which names in the table are relative to; None: no pictures.
        stored: Whether the items are stored predictions.
        categories: COCO category ids, whose positions are the classes.
        class_names: Names of the classes, as far as they are known.
    """

    items: tuple[Item, ...]
    root: Path | None
    stored: bool = False
    categories: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()


class Shard(NamedTuple):
    """A part of an audit: what one call of ``audit_shard`` computes.

    Attributes:
        target: The file to write.
        items: Pictures, or files of stored predictions.
        stored: Whether they are the latter.
        categories: COCO category ids, whose positions are the classes.
        settings: How it is computed.
        digest: Of all of these and of the files' sizes and times: a file with another digest is out of date.
    """

    target: str
    items: tuple[Item, ...]
    stored: bool
    categories: tuple[int, ...]
    settings: Settings
    digest: str

    @property
    def label(self) -> str:
        """Its items in a few words."""
        first, last = self.items[0].name, self.items[-1].name
        return first if len(self.items) == 1 else f"{first} to {last}"


class ShardFacts(NamedTuple):
    """What a finished shard says besides its rows.

    Attributes:
        digest: Of the shard.
        images: Pictures that were read.
        unlabelled: Those among them without any label.
        truths: Rows.
        bad: Files that could not be used.
        parameters: The criterion's hyper-parameters.
        tried: ``min_box_side``, ``imgsz`` and ``stride`` that were tried beside.
    """

    digest: str
    images: int
    unlabelled: int
    truths: int
    bad: tuple[BadFile, ...]
    parameters: dict[str, Any]
    tried: dict[str, float]


def digest_of(shard: Shard) -> str:
    """Return the digest of a shard, from its settings, its items, and the sizes and times of their files.

    Folders do not count: a set that was moved, or is called by another path on another machine, stays the same.
    """
    files = [[_state(path) for path in (item.path, item.label) if path] for item in shard.items]
    items = [(item.name, item.annotations) for item in shard.items]
    settings = shard.settings._replace(weights="")
    content = [FORMAT_VERSION, items, shard.stored, shard.categories, settings, files]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _state(path: str) -> list[int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
