"""What the server and its models are, in the protocol's terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from yolo_assigner.export.contract import TensorSpec
from yolo_assigner.serve.engine.catalogue import VERSION, Known
from yolo_assigner.serve.tensors.datatypes import wire_name
from yolo_loss import __version__

EXTENSIONS = ("binary_tensor_data",)


def server_metadata(extensions: Sequence[str] = ()) -> dict[str, Any]:
    """Row 4: name, version and the extensions that can be used."""
    return {"name": "yolo-assigner", "version": __version__, "extensions": [*EXTENSIONS, *extensions]}


def model_metadata(model: Known) -> dict[str, Any]:
    """Row 5. Outputs that are only sent when named say ``"parameters": {"default": false}``."""
    contract = model.contract
    outputs = [_describe(spec) | {"parameters": {"default": not spec.heavy}} for spec in contract.outputs]
    return {
        "name": contract.name,
        "versions": [VERSION],
        "platform": model.platform,
        "inputs": [_describe(spec) for spec in contract.inputs],
        "outputs": outputs,
    }


def _describe(spec: TensorSpec) -> dict[str, Any]:
    shape = [axis if isinstance(axis, int) else -1 for axis in spec.axes]
    return {"name": spec.name, "datatype": wire_name(spec.dtype), "shape": shape}
