"""Training the n detector on the two sample pictures, with any criterion.

Imports no loss: where it is computed is the criterion's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import trange

from examples.dataset import NAMES, load_labels, load_pictures
from examples.evaluation import Found, count_found, reported_boxes
from yolo_assigner.models import DetectionModel, Detections, DetectorConfig
from yolo_loss.boxes import xywh2xyxy

SEED = 0
CONFIDENCE = 0.25

# Of maps and a batch; the loss, then box, class and distribution terms (3,).
Criterion = Callable[[Any, dict[str, Tensor]], tuple[Tensor, Tensor]]


def new_detector() -> DetectionModel:
    """The n detector of one class with the same random weights each time."""
    torch.manual_seed(SEED)
    return DetectionModel(DetectorConfig("n", nc=1))


class Data(NamedTuple):
    """Both pictures (2, 3, size, size) and their trees, as the criterion takes them."""

    images: Tensor
    batch: dict[str, Tensor]


def load_data(size: int) -> Data:
    """Both pictures at ``size`` x ``size`` pixels with all their trees."""
    batch = {key: torch.from_numpy(column) for key, column in load_labels().items()}
    return Data(torch.from_numpy(load_pictures(size)), batch)


def flip(data: Data, flips: Tensor) -> Data:
    """Mirror pictures and boxes.

    Args:
        data: B pictures.
        flips: (B, 2) bool, whether to mirror left to right and top to bottom.
    """
    images, batch = data
    for axis, dim in ((0, 3), (1, 2)):
        images = torch.where(flips[:, axis, None, None, None], images.flip(dim), images)
    centres, sides = batch["bboxes"][:, :2], batch["bboxes"][:, 2:]
    mirrored = torch.where(flips[batch["batch_idx"]], 1 - centres, centres)  # (T, 2)
    return Data(images, {**batch, "bboxes": torch.cat((mirrored, sides), dim=1)})


def train(
    model: DetectionModel, criterion: Criterion, data: Data, steps: int, peak_rate: float = 2e-3
) -> list[list[float]]:
    """Train in place, every step on all pictures, randomly mirrored; the learning rate rises and falls again.

    Args:
        model: The detector.
        criterion: Gives the loss of its maps and the three terms.
        data: The pictures.
        steps: Updates.
        peak_rate: Largest learning rate.

    Returns:
        Box, class and distribution terms with their gains, of every step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps, pct_start=0.1)
    return _run(model, criterion, data, steps, optimizer, schedule)


def fine_tune(
    model: DetectionModel, criterion: Criterion, data: Data, steps: int, rate: float = 1e-4
) -> list[list[float]]:
    """Go on with a trained detector at one small rate; as :func:`train`, with the same mirrorings each time."""
    torch.manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=5e-4)
    return _run(model, criterion, data, steps, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))


def _run(
    model: DetectionModel,
    criterion: Criterion,
    data: Data,
    steps: int,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> list[list[float]]:
    history = []
    model.train()
    progress = trange(steps, desc="train", unit="step")
    for _ in progress:
        images, batch = flip(data, torch.rand(len(data.images), 2) < 0.5)
        loss, items = criterion(model(images), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
        optimizer.step()
        schedule.step()
        history.append(items.tolist())
        progress.set_postfix(loss=f"{items.sum().item():.3f}")
    measure_statistics(model, data)
    return history


def measure_statistics(model: DetectionModel, data: Data) -> None:
    """Take the normalisation statistics anew, from the pictures in all four mirrorings.

    Those gathered in training follow the weights by 3 % a step: after a run as short as ours they describe weights
    of long ago, and the detector finds next to nothing in eval mode.
    """
    mirrorings = torch.cartesian_prod(torch.tensor((False, True)), torch.tensor((False, True)))  # (4, 2)
    pictures = [flip(data, flips.expand(len(data.images), 2)).images for flips in mirrorings]
    torch.optim.swa_utils.update_bn(pictures, model)


@torch.no_grad()
def detect(model: DetectionModel, images: Tensor) -> Detections:
    """What the model finds, in eval mode."""
    detections = model.eval()(images)
    if not isinstance(detections, Detections):
        raise TypeError(f"the model gave {type(detections).__name__} in eval mode")
    return detections


def count_trees(predictions: Tensor, data: Data) -> list[Found]:
    """Per picture, how many trees are found and how many reported boxes are right."""
    size = data.images.shape[-1]
    trees = xywh2xyxy(data.batch["bboxes"] * size)
    return [
        count_found(reported_boxes(predictions[index], CONFIDENCE), trees[data.batch["batch_idx"] == index])
        for index in range(len(predictions))
    ]


def print_found(found: list[Found]) -> None:
    """How many trees of each picture are found."""
    print(f"boxes of probability {CONFIDENCE} and more, hits at IoU 0.5:")
    for name, counts in zip(NAMES, found, strict=True):
        print(
            f"{name}: {counts.hits} of {counts.trees} trees found (recall {counts.recall:.2f}), "
            f"{counts.reported} reported (precision {counts.precision:.2f})"
        )
