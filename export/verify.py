"""Exported models beside torch float64, on inputs of other sizes than they were traced with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from torch import Tensor

from export.contract import Contract, find_contracts
from export.hyperparameters import Hyperparameters
from export.reference import Reference, flatten
from export.samples import Case, pyramid, sample_assigner_inputs, sample_loss_inputs

# How far float32 may lie from float64, relative to the output's largest magnitude (at least 1, but for gradients):
# u^6 multiplies the rounding of an overlap by six. Labels, masks and indices must be equal.
TOLERANCE = 1e-5
SMALLEST_GRADIENT = 1e-6


class Difference(NamedTuple):
    """One output of one case beside its reference.

    Attributes:
        case: Sizes of the input.
        output: Name.
        largest: Largest absolute difference over the largest magnitude, which counts as 1 at least but for gradients;
            for labels, masks and indices the number of entries that differ.
        tolerance: What ``largest`` may be.
    """

    case: Case
    output: str
    largest: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance. Not a number never is."""
        return self.largest <= self.tolerance


def verify_folder(folder: Path) -> Iterator[tuple[Contract, list[Difference]]]:
    """Check every model in a folder.

    Args:
        folder: Where ``python -m export onnx --out`` wrote.

    Yields:
        Each contract with its differences, one per case and output.

    Raises:
        ContractError: A file is missing, unreadable or not the one described.
    """
    for path, contract in find_contracts(folder):
        yield contract, verify_model(path, contract)


def verify_model(path: Path, contract: Contract) -> list[Difference]:
    """Run one model in ONNX Runtime and the same numbers in torch float64.

    Args:
        path: The ONNX file.
        contract: Its contract; hyper-parameters are taken from there.
    """
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    numbers = Hyperparameters.from_contract(contract.hyperparameters)
    reference = Reference(contract.kind, numbers, contract.formulation)
    differences: list[Difference] = []
    for seed, case in enumerate(verification_cases(contract, numbers)):
        inputs = case_inputs(contract.kind, numbers, case, seed + 1)
        feed = {spec.name: tensor.numpy() for spec, tensor in zip(contract.inputs, flatten(inputs), strict=True)}
        names = [spec.name for spec in contract.outputs]
        got = dict(zip(names, session.run(names, feed), strict=True))
        want = dict(zip(names, reference(inputs), strict=True))
        differences += [Difference(case, name, *_compare(name, got[name], want[name].numpy())) for name in names]
    return differences


def verification_cases(contract: Contract, numbers: Hyperparameters) -> list[Case]:
    """Sizes from the smallest to the usual, square and not, with and without ground truth."""
    classes = numbers.num_classes
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
    if contract.kind == "assigner":
        cases += [cases[2]._replace(num_classes=1), cases[2]._replace(num_classes=classes + 5)]
    return cases


def case_inputs(kind: str, numbers: Hyperparameters, case: Case, seed: int) -> Sequence[Tensor | list[Tensor]]:
    """Seeded inputs of a model for a case."""
    if kind == "assigner":
        return sample_assigner_inputs(case, numbers.strides, seed)
    return sample_loss_inputs(case, numbers.strides, numbers.reg_max, seed)


def _compare(name: str, got: NDArray[Any], want: NDArray[Any]) -> tuple[float, float]:
    if got.shape != want.shape:
        return float("inf"), TOLERANCE
    if want.dtype.kind != "f":
        return float(np.count_nonzero(got != want)), 0.0
    if want.size == 0:
        return 0.0, TOLERANCE
    largest = float(np.abs(want).max())
    # Gradients shrink with the number of anchors: their own largest one is what they are measured by.
    scale = max(SMALLEST_GRADIENT, largest) if name.startswith("grad_") else max(1.0, largest)
    return float(np.abs(got.astype(np.float64) - want).max()) / scale, TOLERANCE
