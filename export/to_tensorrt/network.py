"""From an ONNX file's bytes to TensorRT's network, compared with the model's contract."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from yolo_assigner.export.contract import Contract, ContractError, TensorSpec, load_contract
from yolo_assigner.export.to_tensorrt.log import BuildError, BuildLog

# TensorRT's names of element types to numpy's.
TYPES: Mapping[str, str] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
DYNAMIC = -1


def parse_network(library: Any, builder: Any, logger: Any, source: Source, log: BuildLog) -> Any:
    """Parse a model.

    Args:
        library: The module of TensorRT or TensorRT-RTX.
        builder: Its builder.
        logger: Its logger.
        source: The model.
        log: What the logger keeps.

    Raises:
        BuildError: TensorRT cannot express the graph; nodes are named with their operators.
    """
    # Types are the file's own: TensorRT is to choose none. Since version 11 it never does, and the flag is idle.
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
    """Compare a network's inputs and outputs with a contract: names, order, types, ranks and fixed sizes.

    Args:
        network: TensorRT's.
        contract: Of the model.

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
    """Refuse what TensorRT-RTX computes wrongly without saying so.

    Its support matrix has neither float32 matrix products nor bfloat16 for compute capability 7.5, yet engines are
    built. The authors of Torch-TensorRT saw such products return zeros (pytorch/TensorRT, pull request 4643).

    Args:
        library: The module.
        network: Its network.
        capabilities: That were asked for.

    Raises:
        BuildError: One is 7.5, and the network has such a product or type.
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

    from yolo_assigner.export.to_onnx.precision import narrow

    model, contract = narrow(onnx.load_from_string(source.content), source.contract, str(precision))
    return Source(model.SerializeToString(), contract)
