"""What a runtime gave beside torch in float64: decisions equal, numbers close, and the same ones not finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.runtimes.batches import Batch
from yolo_assigner.export.contract import load_contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import Case
from yolo_assigner.export.specs import map_specs, output_specs
from yolo_assigner.export.to_onnx.detector import detector_from_onnx
from yolo_assigner.export.verification.comparison import TOLERANCE, compare
from yolo_assigner.export.verification.reference import Inputs, Reference, to_float64
from yolo_assigner.export.verification.verify import NETWORK_TOLERANCES
from yolo_assigner.models import DetectionModel

Outputs = Mapping[str, NDArray[Any]]
# Relative to each number; the items are sums of what is raised to the sixth power.
LOSS_TOLERANCES = {"loss": 1e-6, "loss_items": 1e-5}


class Judge:
    """Compares outputs of one model.

    Args:
        model: Its ONNX file, the contract beside it.
    """

    def __init__(self, model: Path) -> None:
        contract = load_contract(model.with_suffix(".json"))
        self.kind = contract.kind
        self.implementation = contract.formulation
        self.numbers = Hyperparameters.from_contract(contract.hyperparameters)
        self.specs = contract.inputs
        self._names = [spec.name for spec in output_specs(self.kind, self.numbers)]
        self._maps = [spec.name for spec in map_specs(self.kind, self.numbers)]
        after_maps = "loss" if self._maps else self.kind
        self._reference = Reference(after_maps, self.numbers, contract.formulation)
        self._detector = detector_from_onnx(model, self.numbers).double() if self._maps else None
        self._wanted: dict[str, dict[str, Tensor]] = {}  # by batch, the same for all runtimes

    def differences(self, batch: Batch, got: Outputs) -> list[str]:
        """What differs, in words; nothing where all is well."""
        inputs = batch.inputs(self.kind, self.numbers)
        assert inputs is not None
        key = f"{batch.group}/{batch.name}"
        if key not in self._wanted:
            self._wanted[key] = self._want(inputs)
        if self._detector is not None:
            return self._detector_differences(self._detector, batch, inputs, got, self._wanted[key])
        return _differences(batch.case, got, self._wanted[key])

    def _want(self, inputs: Inputs) -> dict[str, Tensor]:
        """What the kind gives in float64, or the maps of its network where it has one."""
        if self._detector is None:
            return dict(zip(self._names, self._reference(inputs), strict=True))
        with torch.no_grad():
            return dict(zip(self._maps, self._detector(to_float64(inputs[:1])[0]).maps, strict=True))

    @torch.no_grad()
    def _detector_differences(
        self, detector: DetectionModel, batch: Batch, inputs: Inputs, got: Outputs, maps: Mapping[str, Tensor]
    ) -> list[str]:
        """The network by its maps, the rest by what follows from the runtime's own maps."""
        own = [torch.from_numpy(got[name]) for name in self._maps]
        want = dict(zip(self._names, self._reference([own, *inputs[1:]]), strict=False))
        want["predictions"] = detector.head.decode([level.double() for level in own])
        found = _differences(batch.case, got, maps, NETWORK_TOLERANCES["fp32"])
        return found + _differences(batch.case, got, want)


def _differences(case: Case, got: Outputs, want: Mapping[str, Tensor], tolerance: float = TOLERANCE) -> list[str]:
    found = []
    for name, tensor in want.items():
        reason = _difference(case, name, got[name], tensor, tolerance)
        if reason is not None:
            found.append(f"{name}: {reason}")
    return found


def _difference(case: Case, name: str, got: NDArray[Any], want: Tensor, tolerance: float) -> str | None:
    expected = want.numpy()
    if got.shape != expected.shape:
        return f"shape {got.shape}, expected {expected.shape}"
    if expected.dtype.kind != "f":
        wrong = np.count_nonzero(got != expected)
        return f"{wrong} of {got.size} differ" if wrong else None
    for word, test in (("NaN", np.isnan), ("+inf", np.isposinf), ("-inf", np.isneginf)):
        wrong, extra = np.count_nonzero(test(expected) & ~test(got)), np.count_nonzero(test(got) & ~test(expected))
        if wrong or extra:
            return f"{wrong} of {got.size} should be {word} and are not, {extra} are and should not"
    finite = np.isfinite(expected)
    near, exact = got[finite], expected[finite]
    if name in LOSS_TOLERANCES:
        relative = np.abs(near - exact) / np.maximum(np.abs(exact), np.finfo(np.float32).tiny)
        largest = float(relative.max(initial=0))
        return f"off by {largest:.1e} of itself" if largest > LOSS_TOLERANCES[name] else None
    (measured,) = compare(case, {name: near}, {name: torch.from_numpy(exact)}, tolerance)
    return None if measured.passed else f"off by {measured.largest:.1e} of the largest"
