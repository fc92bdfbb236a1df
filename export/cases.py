"""Sizes and seeded inputs that exported models are verified with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import (
    Case,
    pyramid,
    sample_assigner_inputs,
    sample_detector_inputs,
    sample_loss_inputs,
)


def verification_cases(kind: str, numbers: Hyperparameters) -> list[Case]:
    """Sizes from the smallest to the usual, square and not, with and without ground truth."""
    classes = numbers.num_classes
    if kind == "detector_loss":
        # Of pictures: the network costs far more than the loss, which has cases of its own.
        sizes = [(1, 0, (96, 64)), (1, 1, (32, 32)), (2, 5, (320, 256))]
        return [Case(batch, slots, pyramid(*image, numbers.strides), classes) for batch, slots, image in sizes]
    sizes = [
        (1, 0, (96, 64)),
        (1, 1, (32, 32)),  # fewer anchors than candidates asked for, where topk is large
        (3, 7, (320, 256)),
        (2, 60, (416, 640)),
        (5, 0, (128, 96)),
        (1, 40, (32, 64)),  # more ground truths than some levels have cells
    ]
    cases = [Case(batch, slots, pyramid(*image, numbers.strides), classes) for batch, slots, image in sizes]
    # Overlaps so small that eps decides their soft scores: a graph that lost it is found here.
    cases.append(cases[2]._replace(weak=True))
    if kind == "assigner":
        cases += [cases[2]._replace(num_classes=1), cases[2]._replace(num_classes=classes + 5)]
    return cases


def case_inputs(kind: str, numbers: Hyperparameters, case: Case, seed: int) -> Sequence[Tensor | list[Tensor]]:
    """Seeded inputs of a model for a case."""
    if kind == "assigner":
        return sample_assigner_inputs(case, numbers.strides, seed)
    if kind == "detector_loss":
        return sample_detector_inputs(case, numbers.strides, seed)
    return sample_loss_inputs(case, numbers.strides, numbers.reg_max, seed)
