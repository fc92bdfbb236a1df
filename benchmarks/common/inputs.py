"""Sizes of a benchmark, and seeded inputs of them on a device, in several sets with memory of their own."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_assigner_inputs, sample_loss_inputs
from yolo_loss import GroundTruth

STRIDES, REG_MAX = (8.0, 16.0, 32.0), 16
TASKS = ("assigner", "loss", "loss+grad")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Setting(NamedTuple):
    """One line of a benchmark.

    Attributes:
        task: ``assigner``, ``loss`` (forward) or ``loss+grad`` (forward and backward).
        batch: B.
        slots: M.
        image: Side in pixels.
        classes: C.
    """

    task: str
    batch: int
    slots: int
    image: int = 640
    classes: int = 80

    @property
    def case(self) -> Case:
        """The sizes as :mod:`yolo_assigner.export.samples` takes them."""
        return Case(self.batch, self.slots, pyramid(self.image, self.image, STRIDES), self.classes)


class Inputs(NamedTuple):
    """One input set.

    Attributes:
        predictions: Class scores, boxes and points for the assigner; the maps for the loss.
        truth: Padded ground truth with M slots.
        batch: The ground truth as data loaders give it; empty for the assigner.
    """

    predictions: tuple[Tensor, ...]
    truth: GroundTruth
    batch: dict[str, Tensor]

    def on(self, device: torch.device) -> Inputs:
        """Copy the set to a device."""
        return Inputs(
            tuple(tensor.to(device) for tensor in self.predictions),
            GroundTruth(*(field.to(device) for field in self.truth)),
            {name: values.to(device) for name, values in self.batch.items()},
        )

    def widened(self) -> Inputs:
        """Convert the set to float64."""
        return Inputs(
            tuple(tensor.double() for tensor in self.predictions),
            self.truth._replace(gt_bboxes=self.truth.gt_bboxes.double()),
            {name: values.double() if name == "bboxes" else values for name, values in self.batch.items()},
        )

    def turned(self, images: int) -> Inputs:
        """Make a further set of the same images, rotated by a number of places, in memory of their own."""
        batch = dict(self.batch)
        if batch:
            batch["batch_idx"] = (batch["batch_idx"] + images) % self.truth.gt_bboxes.shape[0]
            # Data loaders give boxes sorted by image, and the reference needs them so.
            order = batch["batch_idx"].argsort(stable=True)
            batch = {name: values[order] for name, values in batch.items()}
        # Points have no image axis.
        predictions = (tensor.clone() if tensor.dim() == 2 else tensor.roll(images, 0) for tensor in self.predictions)
        return Inputs(tuple(predictions), GroundTruth(*(field.roll(images, 0) for field in self.truth)), batch)


def make_inputs(
    setting: Setting,
    precision: str = "fp32",
    seed: int = 1,
    strides: tuple[float, ...] = STRIDES,
    reg_max: int = REG_MAX,
) -> Inputs:
    """Make one set on the CPU.

    Args:
        setting: Sizes; ``loss`` and ``loss+grad`` have equal sets.
        precision: ``fp32``, or ``fp16`` or ``bf16`` for class scores or maps; boxes and points stay float32, because
            float16 has steps of half a pixel above 512.
        seed: Seed of the values.
        strides: Pixels per cell of each level.
        reg_max: R.
    """
    of_assigner = setting.task == "assigner"
    made = _made(setting._replace(task="assigner" if of_assigner else "loss"), seed, strides, reg_max)
    narrowed = 1 if of_assigner else len(strides)
    first = tuple(tensor.to(PRECISIONS[precision]) for tensor in made.predictions[:narrowed])
    return made._replace(predictions=(*first, *made.predictions[narrowed:]))


@lru_cache(maxsize=2)  # a setting's tasks and precisions follow one another
def _made(setting: Setting, seed: int, strides: tuple[float, ...], reg_max: int) -> Inputs:
    image = setting.image
    case = Case(setting.batch, setting.slots, pyramid(image, image, strides), setting.classes)
    if setting.task == "assigner":
        scores, boxes, points, *rest = sample_assigner_inputs(case, strides, seed)
        return Inputs((scores, boxes, points), GroundTruth(*rest), {})
    feats, *rest = sample_loss_inputs(case, strides, reg_max, seed)
    truth = GroundTruth(*rest)
    return Inputs(tuple(feats), truth, ragged_batch(truth, (image, image)))


def input_sets(setting: Setting, precision: str, device: torch.device, sets: int) -> list[Inputs]:
    """Make several sets on a device, which take turns."""
    first = make_inputs(setting, precision).on(device)
    return [first, *(first.turned(number) for number in range(1, sets))]
