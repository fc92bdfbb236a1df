"""What an engine is built from: an ONNX file that its contract describes, in the precision of the engine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from yolo_assigner.export.contract import Contract, ContractError, load_contract


class Source(NamedTuple):
    """A model.

    Attributes:
        content: Bytes of an ONNX file.
        contract: What it takes and gives.
    """

    content: bytes
    contract: Contract


def read_source(model: Path) -> Source:
    """Read an exported model with its contract.

    Args:
        model: The ONNX file.

    Raises:
        ContractError: One of the two is missing, or the file is not the one that was described.
        ValueError: It is of a formulation that TensorRT cannot express.
    """
    remedy = "export the model with `yolo-assigner export onnx --formulation dense`"
    path = model.with_suffix(".json")
    for needed in (model, path):
        if not needed.is_file():
            raise ContractError(f"{needed} is not there; {remedy}")
    contract = load_contract(path)
    content = model.read_bytes()
    if contract.file != model.name or contract.sha256 != hashlib.sha256(content).hexdigest():
        raise ContractError(f"{model} is not the file that {path.name} describes (name or hash differs); {remedy}")
    if contract.formulation != "dense":
        raise ValueError(f"{model} is of formulation {contract.formulation!r}, which TensorRT cannot express; {remedy}")
    return Source(content, contract)


def narrow_source(source: Source, precision: str | None) -> Source:
    """The model in a precision.

    Args:
        source: The model as it was exported.
        precision: One of ``yolo_assigner.export.contract.PRECISIONS``; None for the one that it has.

    Raises:
        ValueError: There is no such precision, or the model is in a narrow one and another is asked for.
    """
    if precision in (None, source.contract.precision):
        return source
    import onnx

    from yolo_assigner.export.precision import narrow

    model, contract = narrow(onnx.load_from_string(source.content), source.contract, str(precision))
    return Source(model.SerializeToString(), contract)
