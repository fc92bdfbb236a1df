"""Exported models beside torch float64, on inputs of other sizes than they were traced with."""

from __future__ import annotations

from pathlib import Path

from yolo_assigner.export.contract import Contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.verification.comparison import Difference, case_inputs, compare, verification_cases
from yolo_assigner.export.verification.detector import verify_detector
from yolo_assigner.export.verification.reference import Reference
from yolo_assigner.export.verification.runnable import Runnable, in_types


def verify_model(path: Path, contract: Contract) -> list[Difference]:
    """Run one model in ONNX Runtime and the same numbers in torch float64.

    Args:
        path: The ONNX file.
        contract: Its contract; hyper-parameters are taken from there.

    Returns:
        One difference per case and output.

    Raises:
        CannotRunError: ONNX Runtime has no kernels for it on the CPU.
        ContractError: The file does not hold the detector that the contract describes.
    """
    if contract.kind == "detector_loss":
        return verify_detector(path, contract)
    model = Runnable(path, contract.inputs)
    numbers = Hyperparameters.from_contract(contract.hyperparameters)
    reference = Reference(contract.kind, numbers, contract.formulation)
    names = [spec.name for spec in contract.outputs]
    differences: list[Difference] = []
    for seed, case in enumerate(verification_cases(contract.kind, numbers)):
        inputs = in_types(case_inputs(contract.kind, numbers, case, seed + 1), contract.inputs)
        differences += compare(case, model(inputs, names), dict(zip(names, reference(inputs), strict=True)))
    return differences
