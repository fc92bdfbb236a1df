"""Models in 16 bits: predictions and images are in the narrow type, and a detector's network computes in it.

Assignment and loss are always computed in float32: IoU^6 underflows in float16 below an IoU of 0.0625. Boxes and
points are float32, because float16 has steps of half a pixel above 512. Outputs are float32 too, gradients included:
where a detector is sure of background, those of the class loss are below float16's smallest number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

import ml_dtypes
import numpy as np
import onnx
from onnxscript import ir

from yolo_assigner.export.contract import PRECISIONS, Contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.specs import map_specs

# Prefixes of the inputs that are narrowed.
NARROWED = ("feat_", "pd_scores", "images")
# The first opset with convolution and pooling in bfloat16.
NETWORK_OPSET = 22
FLOAT = ir.DataType.FLOAT


def narrow(model: onnx.ModelProto, contract: Contract, precision: str) -> tuple[onnx.ModelProto, Contract]:
    """Convert a model to a narrower precision.

    Args:
        model: Model in float32 that ``yolo_assigner.export.to_onnx.exporter`` traced.
        contract: Its contract.
        precision: One of ``PRECISIONS``; the model's own changes nothing.

    Returns:
        The model and its contract. Inputs with predictions or images have the narrow type and are cast to float32 where
        the assignment and the loss read them. A detector's network computes in the narrow type up to its
        raw maps, with rounded weights. The contract has the new precision, input types and opset, but the file and
        hash of the given model.

    Raises:
        ValueError: The precision is unknown, the model is already narrow, or a weight is out of the type's range.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if precision == contract.precision:
        return model, contract
    if contract.precision != "fp32":
        raise ValueError(
            f"{contract.name} is in {contract.precision}, {precision} needs the model in fp32; export that"
        )
    dtype = ir.DataType[PRECISIONS[precision].upper()]
    maps = [spec.name for spec in map_specs(contract.kind, Hyperparameters.from_contract(contract.hyperparameters))]
    narrowed = _narrow_graph(model, maps, dtype)
    onnx.checker.check_model(narrowed, full_check=True)
    inputs = tuple(
        dataclasses.replace(spec, dtype=PRECISIONS[precision]) if spec.name.startswith(NARROWED) else spec
        for spec in contract.inputs
    )
    opset = next(opset.version for opset in narrowed.opset_import if not opset.domain)
    versions = {**contract.versions, "opset": str(opset)}
    return narrowed, dataclasses.replace(contract, precision=precision, inputs=inputs, versions=versions)


def _narrow_graph(model: onnx.ModelProto, maps: Collection[str], dtype: ir.DataType) -> onnx.ModelProto:
    if maps and dtype == ir.DataType.BFLOAT16:
        model = onnx.version_converter.convert_version(model, NETWORK_OPSET)
    # Types decide what is narrowed, and the exporter omits some.
    result = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    graph = result.graph
    inputs = [value for value in graph.inputs if str(value.name).startswith(NARROWED)]
    ends = [value for node in graph for value in node.outputs if value.name in maps]
    network = _ancestors(ends)
    for value in inputs:
        value.dtype = dtype
    _narrow_network([node for node in graph if node in network], inputs, dtype, graph.opset_imports[""])
    for value in inputs:
        _widen(graph, value, f"{value.name}_float32", network)
    for value in ends:
        # The map's name stays with the float32 value, which the loss reads.
        name, value.name = str(value.name), f"{value.name}_{dtype.name.lower()}"
        _widen(graph, value, name, network)
    return ir.to_proto(result)


def _ancestors(values: Iterable[ir.Value]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            waiting += [value for value in node.inputs if value is not None]
    return found


def _narrow_network(nodes: Iterable[ir.Node], inputs: Iterable[ir.Value], dtype: ir.DataType, opset: int) -> None:
    """Change the type of everything computed from the inputs, and of the weights that take part."""
    narrowed = set(inputs)
    for node in nodes:
        if narrowed.isdisjoint(node.inputs):
            continue
        formal = onnx.defs.get_schema(node.op_type, opset).inputs
        for index, value in enumerate(node.inputs):
            # An input without a type variable in its schema, such as the scales of Resize, is always float32.
            fixed = "(" in formal[min(index, len(formal) - 1)].type_str
            if value is not None and value.const_value is not None and value.dtype == FLOAT and not fixed:
                value.const_value = _narrow_weight(str(value.name), value.const_value, dtype)
                value.dtype = dtype
        for value in node.outputs:
            if value.dtype == FLOAT:
                value.dtype = dtype
                narrowed.add(value)


def _narrow_weight(name: str, weight: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    limit = float(ml_dtypes.finfo(dtype.numpy()).max)  # type: ignore[no-untyped-call]
    largest = np.abs(weight.numpy()).max(initial=0.0)
    if largest > limit:
        raise ValueError(f"weight {name} reaches {largest:.3g}, {dtype.name} only {limit:.3g}; take bf16 or fp32")
    return ir.tensor(weight.numpy().astype(dtype.numpy()), name=name)


def _widen(graph: ir.Graph, value: ir.Value, name: str, network: Collection[ir.Node]) -> None:
    """Cast a value to float32 for its readers outside the network, except those that only read its shape."""
    readers = [use for use in value.uses() if use.node not in network and use.node.op_type != "Shape"]
    if not readers:
        return
    cast = ir.node("Cast", [value], {"to": int(FLOAT)})
    wide = cast.outputs[0]
    wide.name, wide.dtype, wide.shape = name, FLOAT, value.shape
    for reader, index in readers:
        reader.replace_input_with(index, wide)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)
