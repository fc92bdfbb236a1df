"""Explain a training while it runs: the table of an audit, every N steps, and pictures for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from yolo_assigner.audit.rows import Picture, Tables, explain_rows
from yolo_assigner.audit.structures import Changes, ShardFacts
from yolo_assigner.audit.table import write_shard
from yolo_loss.criterion import DetectionLoss
from yolo_loss.option_checks import whole_number
from yolo_loss.predictions import RawOutput
from yolo_loss.validate import check_batch

LEARNED, NOT_LEARNED = (64, 200, 64), (255, 64, 64)
MOST_DRAWN = 4  # pictures of a batch


class TrainingAudit:
    """Explains every N-th batch of a training, and writes what ``yolo-assigner audit`` writes.

    Args:
        criterion: The training's; of an ``EndToEndLoss`` one of its two parts.
        folder: Gets a file ``step-00000100.parquet`` for each step that is explained.
        every: N.
        writer: TensorBoard's ``SummaryWriter``, which gets the share of objects that anchors learn, the number of those
            with each reason, and pictures with their objects: green where anchors learn them, else red. None: none.
        changes: What is tried beside; by default it is chosen from the strides.

    Raises:
        ValueError: ``every`` is not a whole number of at least 1.
    """

    def __init__(
        self,
        criterion: DetectionLoss,
        folder: Path,
        every: int = 100,
        writer: Any = None,
        changes: Changes = Changes(),  # noqa: B008  (immutable)
    ) -> None:
        self.criterion, self.folder, self.writer, self.changes = criterion, folder, writer, changes
        self.every = whole_number("every", every)

    def __call__(
        self,
        step: int,
        preds: RawOutput,
        batch: Mapping[str, Any],
        images: Tensor | None = None,
        names: Sequence[str] | None = None,
    ) -> Path | None:
        """Explain a batch, if its step is due.

        Args:
            step: Number of the step; multiples of N are due.
            preds: The head's output, as the criterion takes it.
            batch: The batch, as the criterion takes it.
            images: (B, 3, H, W) in [0, 1], for TensorBoard.
            names: B names of the pictures; None: their numbers in the batch.

        Returns:
            The file that was written; None where the step is not due.

        Raises:
            ValueError: As the criterion.
            OSError: The file cannot be written.
        """
        if step % self.every:
            return None
        pictures = pictures_of(batch, names)
        tables = explain_rows(self.criterion, preds, batch, pictures, self.changes)
        empty = sum(len(picture.boxes) == 0 for picture in pictures)
        facts = ShardFacts("", len(pictures), empty, len(tables.rows), (), tables.parameters, tables.tried._asdict())
        target = self.folder / f"step-{step:08d}.parquet"
        write_shard(target, tables.rows, facts)
        if self.writer is not None:
            self._show(step, tables, pictures, images)
        return target

    def _show(self, step: int, tables: Tables, pictures: Sequence[Picture], images: Tensor | None) -> None:
        reasons = [row["reason"] for row in tables.rows]
        for reason in sorted(set(reasons)):
            self.writer.add_scalar(f"explain/{reason}", reasons.count(reason), step)
        self.writer.add_scalar("explain/learned", reasons.count("assigned") / max(len(reasons), 1), step)
        if images is not None:
            for number, picture in enumerate(pictures[:MOST_DRAWN]):
                rows = [row for row in tables.rows if row["image"] == picture.name]
                drawn = draw_objects(images[number], rows)
                self.writer.add_image(f"explain/{number}", drawn, step, dataformats="HWC")


def pictures_of(batch: Mapping[str, Any], names: Sequence[str] | None) -> list[Picture]:
    """Divide the boxes of a batch among its pictures.

    Args:
        batch: As the criterion takes it.
        names: B names; None: B is what ``batch_idx`` says.

    Raises:
        ValueError: The batch is not one, or has boxes of more pictures than there are names.
    """
    index = torch.as_tensor(batch["batch_idx"]).reshape(-1)
    count = len(names) if names is not None else int(index.max()) + 1 if len(index) else 0
    image, _, boxes = (column.cpu() for column in check_batch(batch, count))
    names = [str(number) for number in range(count)] if names is None else names
    return [Picture(name, boxes[image == number]) for number, name in enumerate(names)]


def draw_objects(image: Tensor, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.uint8]:
    """Draw the boxes of rows on a picture.

    Args:
        image: (3, H, W) in [0, 1].
        rows: Of the table, of this picture.

    Returns:
        (H, W, 3) uint8.
    """
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    draw = ImageDraw.Draw(picture)
    for row in rows:
        low, high = (row["x1"], row["y1"]), (row["x2"], row["y2"])
        if high[0] >= low[0] and high[1] >= low[1]:
            draw.rectangle((*low, *high), outline=LEARNED if row["reason"] == "assigned" else NOT_LEARNED)
    return np.asarray(picture)
