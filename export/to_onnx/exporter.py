"""Writing the ONNX file and its contract.

The file is not named ``onnx.py``: run as a script, it would hide the package of that name.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import ir, optimizer

from yolo_assigner.export.contract import Contract, TensorSpec, file_hash
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import (
    Case,
    pyramid,
    sample_assigner_inputs,
    sample_detector_inputs,
    sample_loss_inputs,
)
from yolo_assigner.export.specs import input_specs, map_specs, output_specs
from yolo_assigner.export.to_onnx.detector import check_source, check_weights, detector_from_checkpoint
from yolo_assigner.export.to_onnx.graphs import build_graph
from yolo_assigner.export.to_onnx.operators import TRANSLATIONS
from yolo_assigner.export.to_onnx.precision import narrow
from yolo_assigner.models.head import STRIDES
from yolo_loss import __version__

OPSET = 20
# Tracing derives bounds of products from it, which must fit 64 bits; the graph itself takes larger axes.
LARGEST_AXIS = 2**10
# Sizes to trace with: no two dynamic axes alike, none 0 or 1, which tracing would take for constants.
TRACE_IMAGE, TRACE_BATCH, TRACE_SLOTS = (160, 224), 2, 3


def export_onnx(
    kind: str,
    numbers: Hyperparameters,
    out: Path,
    *,
    name: str | None = None,
    formulation: str = "sparse",
    weights: Path | None = None,
    precision: str = "fp32",
) -> tuple[Path, Contract]:
    """Write ``NAME.onnx`` and ``NAME.json``.

    Args:
        kind: One of ``yolo_assigner.export.contract.KINDS``.
        numbers: Hyper-parameters.
        out: Folder, made when it is not there.
        name: Under which the model is served; the kind when None.
        formulation: How the assignment is computed.
        weights: State dict of the detector; ``detector_loss`` only.
        precision: As :func:`yolo_assigner.export.to_onnx.precision.narrow` describes it.

    Returns:
        Path of the ONNX file and its contract.

    Raises:
        ValueError: A hyper-parameter is out of range, or the weights are not of the detector that it describes.
    """
    name = name or kind
    model, contract = narrow(*_build_model(kind, numbers, name, formulation, weights), precision)
    out.mkdir(parents=True, exist_ok=True)
    path = out / contract.file
    temporary = path.with_suffix(".onnx.tmp")
    temporary.write_bytes(model.SerializeToString())
    # An old contract beside a new file would be a mismatch; the other way round is noticed by its hash.
    temporary.replace(path)
    contract = dataclasses.replace(contract, sha256=file_hash(path))
    contract.save(out / f"{name}.json")
    return path, contract


def _build_model(
    kind: str, numbers: Hyperparameters, name: str, formulation: str, weights: Path | None
) -> tuple[onnx.ModelProto, Contract]:
    """The model in float32, and its contract without the hash of a file."""
    check_source(kind, numbers, weights)
    detector = detector_from_checkpoint(weights, numbers) if weights else None
    inputs, outputs, maps = input_specs(kind, numbers), output_specs(kind, numbers), map_specs(kind, numbers)
    graph = build_graph(kind, numbers, formulation, detector)
    program = _trace(graph, trace_inputs(kind, numbers), inputs, (*outputs, *maps))
    _simplify(program.model)
    # The maps were outputs to get their names.
    del program.model.graph.outputs[len(outputs) :]
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    if detector is not None:
        check_weights(model, detector)
    contract = Contract(
        name, kind, f"{name}.onnx", "", formulation, numbers.as_contract(), inputs, outputs, _versions()
    )
    return model, contract


def trace_inputs(kind: str, numbers: Hyperparameters) -> tuple[Any, ...]:
    """Example inputs of the graph."""
    case = Case(TRACE_BATCH, TRACE_SLOTS, pyramid(*TRACE_IMAGE, numbers.strides), numbers.num_classes)
    if kind == "assigner":
        # One class would be taken for a constant.
        return sample_assigner_inputs(case._replace(num_classes=max(case.num_classes, 2)), numbers.strides, seed=0)
    if kind == "detector_loss":
        return sample_detector_inputs(case, numbers.strides, seed=0)
    return sample_loss_inputs(case, numbers.strides, numbers.reg_max, seed=0)


def _trace(
    graph: torch.nn.Module, example: tuple[Any, ...], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> torch.onnx.ONNXProgram:
    shapes = iter(_dynamic_axes(spec) for spec in inputs)
    dynamic_shapes = tuple([next(shapes) for _ in item] if isinstance(item, list) else next(shapes) for item in example)
    # They would list the torchvision operators that are skipped, and every empty list among the attributes.
    for name in ("torch.onnx._internal.exporter._registration", "onnx_ir._convenience"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations; what it gets wrong is found by `verify`
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            # The default optimiser takes 1e-9 for zero and drops `+ eps` without a word.
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return program


def _dynamic_axes(spec: TensorSpec) -> dict[int, torch.export.Dim]:
    return {index: _dim(axis) for index, axis in enumerate(spec.axes) if isinstance(axis, str)}


_DIMS: dict[str, torch.export.Dim] = {}


def _dim(axis: str) -> torch.export.Dim:
    if axis in ("H", "W"):
        # Pixels of a picture: whole cells of the coarsest map.
        return STRIDES[-1] * _dim(f"{axis}{len(STRIDES) - 1}")
    return _DIMS.setdefault(axis, torch.export.Dim(axis, max=LARGEST_AXIS))


def _simplify(model: ir.Model) -> None:
    """Fold constants and drop what does nothing: neither can change a number, and TensorRT's parser needs both."""
    optimizer.fold_constants(model)
    _skip_idle_transposes(model.graph)
    optimizer.remove_unused_nodes(model)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with the exporting machine's paths, most of the file
        node.doc_string = None


def _skip_idle_transposes(graph: ir.Graph) -> None:
    """Indexing is translated with transpositions that change nothing, and runtimes copy the tensor for them."""
    for node in graph:
        perm = list(node.attributes.get_ints("perm", [])) if node.op_type == "Transpose" else []
        before, after = node.inputs[0] if node.inputs else None, node.outputs[0]
        if perm and perm == sorted(perm) and before is not None and not after.is_graph_output():
            after.replace_all_uses_with(before)


def _versions() -> dict[str, str]:
    # Our own is not asked of the installation: a checkout exports without one.
    libraries = {package: version(package) for package in ("torch", "onnx", "onnxscript")}
    return {"yolo-assigner": __version__, **libraries, "opset": str(OPSET)}
