"""Explain a training in Ultralytics' own trainer: the table of an audit, every N batches, and pictures.

Using it needs your own installation of the package ``ultralytics``, whose licence is AGPL-3.0; nothing of it is here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from yolo_assigner.audit.structures import Changes
from yolo_assigner.audit.training import TrainingAudit
from yolo_loss.criterion import DetectionLoss, gains_of
from yolo_loss.end_to_end import PARTS
from yolo_loss.integrations.ultralytics import criterion_for
from yolo_loss.integrations.ultralytics_criterion import DetectionCriterion, EndToEndCriterion, with_class_weights
from yolo_loss.option_checks import whole_number

# Names under which other modules hold the one that is trained: a compiled, a parallel and a distilled one.
WRAPPERS = ("_orig_mod", "module", "student_model")
FOLDER = "explain"  # in the run's own


class UltralyticsAudit:
    """Explains every N-th batch of a detector's training: ``UltralyticsAudit(every=500).attach(yolo)``.

    The loss stays what it is, Ultralytics' own or ours in ``use()``. With Ultralytics' own, ours explains it with the
    same hyper-parameters. Of a head with two branches the one-to-many branch is explained.

    Args:
        folder: As for ``TrainingAudit``; None: the folder ``explain`` of the run.
        every: N.
        writer: As for ``TrainingAudit``; None: one that writes into the run's folder, where TensorBoard is installed.
        changes: As for ``TrainingAudit``.

    Raises:
        ValueError: ``every`` is not a whole number of at least 1.
    """

    def __init__(
        self,
        folder: Path | None = None,
        every: int = 100,
        writer: Any = None,
        changes: Changes = Changes(),  # noqa: B008  (immutable)
    ) -> None:
        self.folder, self.writer, self.changes = folder, writer, changes
        self.every = whole_number("every", every)
        self.step = 0

    def attach(self, yolo: Any) -> None:
        """Add what follows to the callbacks of a ``YOLO`` object or of a trainer."""
        for event in ("on_train_start", "on_train_batch_start", "on_train_batch_end", "on_train_end"):
            yolo.add_callback(event, getattr(self, event))

    def on_train_start(self, trainer: Any) -> None:
        """Count batches from where the run is resumed, and start writing."""
        self.step = trainer.start_epoch * len(trainer.train_loader)
        if self.writer is None and _is_first():
            self.writer = _writer(trainer.save_dir)

    def on_train_batch_start(self, trainer: Any) -> None:
        """Keep what the criterion is given, if the batch is due."""
        model = trained_model(trainer)
        # The batch before may have ended in the middle, for want of memory.
        model.criterion = _original(model)
        if self.step % self.every == 0 and _is_first():
            model.criterion = _Recorder(model.init_criterion() if model.criterion is None else model.criterion)

    def on_train_batch_end(self, trainer: Any) -> None:
        """Explain the batch, if it is due.

        Raises:
            ValueError: The head is not a detector's.
            OSError: The file cannot be written.
        """
        model = trained_model(trainer)
        recorder, model.criterion = model.criterion, _original(model)
        if isinstance(recorder, _Recorder) and recorder.seen is not None:
            self._explain(trainer, recorder.criterion, *recorder.seen)
        self.step += 1

    def on_train_end(self, _trainer: Any) -> None:
        """Write what is not on the disk yet."""
        if self.writer is not None:
            self.writer.flush()

    def _explain(self, trainer: Any, criterion: Any, preds: Any, batch: Mapping[str, Any]) -> None:
        model = trained_model(trainer)
        ours = criterion if isinstance(criterion, DetectionCriterion | EndToEndCriterion) else criterion_for(model)
        loss: DetectionLoss
        if isinstance(ours, EndToEndCriterion):
            loss, preds = ours.detection_loss.one2many, preds[PARTS[0]]
        else:
            loss = ours.detection_loss
        loss.gains = gains_of(model)
        folder = self.folder or Path(trainer.save_dir) / FOLDER
        audit = TrainingAudit(loss, folder, self.every, self.writer, self.changes)
        names = [Path(file).name for file in batch["im_file"]]
        audit(self.step, preds, with_class_weights(model, batch), batch["img"], names)


class _Recorder:
    """A criterion that keeps what it is given. It stands in the other's place for one batch, and is never saved."""

    def __init__(self, criterion: Any) -> None:
        self.criterion = criterion
        self.seen: tuple[Any, Mapping[str, Any]] | None = None

    def __call__(self, preds: Any, batch: Mapping[str, Any]) -> Any:
        self.seen = preds, batch
        return self.criterion(preds, batch)


def trained_model(trainer: Any) -> Any:
    """The module whose criterion a trainer calls, without what is around it."""
    model = trainer.model
    while True:
        inner = [getattr(model, name) for name in WRAPPERS if isinstance(getattr(model, name, None), nn.Module)]
        if not inner:
            return model
        model = inner[0]


def _original(model: Any) -> Any:
    """The criterion of a model; None: it has not made one yet."""
    criterion = getattr(model, "criterion", None)
    return criterion.criterion if isinstance(criterion, _Recorder) else criterion


def _is_first() -> bool:
    """Whether this process is the first, or only, one of the training."""
    return int(os.getenv("RANK", "-1")) <= 0


def _writer(folder: Path) -> Any:
    """TensorBoard's writer; None: it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
