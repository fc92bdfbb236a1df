"""Read an exported model, parse it to TensorRT's network and check that against the model's contract."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from yolo_assigner.export.contract import Contract, ContractError, TensorSpec, load_contract
from yolo_assigner.export.to_tensorrt.log import BuildError, BuildLog

# Element types by their names in TensorRT and in numpy.
TYPES: Mapping[str, str] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
DYNAMIC = -1


class Source(NamedTuple):
    """An exported model.

    Attributes:
        content: Bytes of the ONNX file.
        contract: Its contract.
    """

    content: bytes
    contract: Contract


def read_source(model: Path) -> Source:
    """Read an exported model with its contract.

    Args:
        model: The ONNX file.

    Raises:
        ContractError: One of the two files is missing, or they do not match.
        ValueError: TensorRT does not support the model's implementation of the assignment.
    """
    remedy = "export the model with `yolo-assigner export onnx --for tensorrt`"
    path = model.with_suffix(".json")
    for needed in (model, path):
        if not needed.is_file():
            raise ContractError(f"{needed} is not there; {remedy}")
    contract = load_contract(path)
    content = model.read_bytes()
    if contract.file != model.name or contract.sha256 != hashlib.sha256(content).hexdigest():
        raise ContractError(f"{model} is not the file that {path.name} describes (name or hash differs); {remedy}")
    if contract.formulation != "dense":
        raise ValueError(f"{model} is {contract.formulation}, which TensorRT cannot express; {remedy}")
    return Source(content, contract)


def narrow_source(source: Source, precision: str | None) -> Source:
    """Convert a model to another precision.

    Args:
        source: The model as it was exported.
        precision: One of ``yolo_assigner.export.contract.PRECISIONS``; None for the model's own.

    Raises:
        ValueError: The precision is unknown, or the model is already in another narrow one.
    """
    if precision in (None, source.contract.precision):
        return source
    import onnx

    from yolo_assigner.export.to_onnx.precision import narrow

    model, contract = narrow(onnx.load_from_string(source.content), source.contract, str(precision))
    return Source(model.SerializeToString(), contract)


def parse_network(library: Any, builder: Any, logger: Any, source: Source, log: BuildLog) -> Any:
    """Parse a model with a logger that records in ``log``.

    Raises:
        BuildError: TensorRT does not support the graph; the message names nodes and operators.
    """
    # The flag keeps the types of the file. From version 11 on TensorRT always does, and the flag has no effect.
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(source.content):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise log.failure(f"TensorRT refuses {source.contract.file}:", [_describe(error) for error in errors])
    return network


def _describe(error: Any) -> str:
    code = str(error.code()).rsplit(".", maxsplit=1)[-1]
    where = f"node {error.node_name()} ({error.node_operator()}): " if error.node_operator() else ""
    return f"{where}{code}, {error.desc()} in {error.func()}"


def check_tensors(network: Any, contract: Contract) -> None:
    """Compare names, order, types, ranks and fixed sizes of a network's inputs and outputs with a contract.

    Raises:
        ContractError: They differ.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for what, specs, tensors in (("inputs", contract.inputs, inputs), ("outputs", contract.outputs, outputs)):
        names = [tensor.name for tensor in tensors]
        promised = [spec.name for spec in specs]
        if names != promised:
            raise ContractError(
                f"the {what} of {contract.file} are {names}, its contract says {promised}; export it again"
            )
        for spec, tensor in zip(specs, tensors, strict=True):
            _check_tensor(spec, tensor, contract.file)


def _check_tensor(spec: TensorSpec, tensor: Any, file: str) -> None:
    dtype, shape = TYPES.get(tensor.dtype.name, tensor.dtype.name), tuple(tensor.shape)
    fits = len(shape) == len(spec.axes) and all(
        size in (DYNAMIC, axis) for size, axis in zip(shape, spec.axes, strict=True) if isinstance(axis, int)
    )
    if dtype != spec.dtype or not fits:
        raise ContractError(
            f"{spec.name} of {file} is {dtype} of shape {shape} ({DYNAMIC} is any size), "
            f"its contract says {spec.dtype} of {spec.axes}; export it again"
        )


def check_hardware(library: Any, network: Any, capabilities: Sequence[str]) -> None:
    """Reject a network that TensorRT-RTX would silently compute wrongly on one of the compute capabilities.

    Its support matrix has neither float32 matrix products nor bfloat16 for compute capability 7.5, yet it builds such
    engines. The authors of Torch-TensorRT saw the products return zeros (pytorch/TensorRT, pull request 4643).

    Raises:
        BuildError: The capabilities include 7.5, and the network has such a product or type.
    """
    if "7.5" not in capabilities:
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        dtypes = {layer.get_output(place).dtype for place in range(layer.num_outputs)}
        product = layer.type == library.LayerType.MATRIX_MULTIPLY and library.float32 in dtypes
        if product or library.bfloat16 in dtypes:
            what = "float32 matrix products" if product else "bfloat16"
            raise BuildError(
                f"compute capability 7.5 has no {what} in TensorRT-RTX, which node {layer.name} needs; "
                "leave 7.5 out, or build with --runtime tensorrt on that machine"
            )
