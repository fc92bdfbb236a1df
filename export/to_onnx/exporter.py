"""Export of a model to ONNX with its contract."""

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

from yolo_assigner.export.contract import Contract, TensorSpec, file_hash, write_atomically
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import Case, pyramid, sample_inputs
from yolo_assigner.export.specs import input_specs, map_specs, output_specs
from yolo_assigner.export.to_onnx.detector import check_source, check_weights, detector_from_checkpoint
from yolo_assigner.export.to_onnx.graphs import build_graph
from yolo_assigner.export.to_onnx.operators import TRANSLATIONS
from yolo_assigner.export.to_onnx.precision import narrow
from yolo_assigner.export.to_onnx.program import trace
from yolo_loss import __version__

OPSET = 20
# Tracing multiplies it to bounds that must fit 64 bits; the graph itself accepts larger axes.
LARGEST_AXIS = 2**10
# Sizes for tracing: every dynamic axis has another one, and none is 0 or 1, which tracing would treat as constants.
TRACE_CELLS, TRACE_BATCH, TRACE_SLOTS, TRACE_REGIONS, TRACE_SETS = (5, 7), 2, 3, 4, 6
LEAST_COARSEST = 32.0  # pixels per cell in which the image for tracing is measured, if no level is coarser


def export_onnx(
    kind: str,
    hyperparameters: Hyperparameters,
    out: Path,
    *,
    name: str | None = None,
    implementation: str = "sparse",
    weights: Path | None = None,
    precision: str = "fp32",
) -> tuple[Path, Contract]:
    """Write ``NAME.onnx`` and ``NAME.json``.

    Args:
        kind: One of ``yolo_assigner.export.contract.KINDS``.
        hyperparameters: Hyper-parameters of the model.
        out: Output folder, created if missing.
        name: Name under which the model is served; the kind if None.
        implementation: Implementation of the assignment: ``sparse``, the fastest in ONNX Runtime, or ``dense``, which
            TensorRT takes.
        weights: State dict of the detector, for kinds that hold one.
        precision: One of ``PRECISIONS``; see :func:`yolo_assigner.export.to_onnx.precision.narrow`.

    Returns:
        Path of the ONNX file and its contract.

    Raises:
        ValueError: The implementation or precision is unknown, the detector is missing or superfluous, or the weights
            do not fit the hyper-parameters.
    """
    name = name or kind
    model, contract = narrow(*_build_model(kind, hyperparameters, name, implementation, weights), precision)
    out.mkdir(parents=True, exist_ok=True)
    path = out / contract.file
    # The model is written first: if the export ends in between, the old contract's hash shows the mismatch.
    write_atomically(path, model.SerializeToString())
    contract = dataclasses.replace(contract, sha256=file_hash(path))
    contract.save(out / f"{name}.json")
    return path, contract


def _build_model(
    kind: str, hyperparameters: Hyperparameters, name: str, implementation: str, weights: Path | None
) -> tuple[onnx.ModelProto, Contract]:
    check_source(kind, hyperparameters, weights)
    detector = detector_from_checkpoint(weights, hyperparameters) if weights else None
    inputs, outputs = input_specs(kind, hyperparameters), output_specs(kind, hyperparameters)
    graph = build_graph(kind, hyperparameters, implementation, detector)
    # The maps are outputs only while tracing, so that they are named.
    traced_outputs = (*outputs, *map_specs(kind, hyperparameters))
    shapes = _dynamic_axes(inputs, hyperparameters.strides)
    program = _trace(graph, _trace_inputs(kind, hyperparameters), shapes, inputs, traced_outputs)
    _simplify(program.model)
    del program.model.graph.outputs[len(outputs) :]
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    if detector is not None:
        check_weights(model, detector)
    contract = Contract(
        name, kind, f"{name}.onnx", "", implementation, hyperparameters.as_contract(), inputs, outputs, _versions()
    )
    return model, contract


def _trace_inputs(kind: str, hyperparameters: Hyperparameters) -> tuple[Any, ...]:
    # With one class, tracing would treat the assigner's dynamic axis C as a constant.
    classes = max(hyperparameters.num_classes, 2) if kind == "assigner" else hyperparameters.num_classes
    coarsest = max(LEAST_COARSEST, *hyperparameters.strides)
    height, width = (int(cells * coarsest) for cells in TRACE_CELLS)
    grids = pyramid(height, width, hyperparameters.strides)
    case = Case(TRACE_BATCH, TRACE_SLOTS, grids, classes, regions=TRACE_REGIONS, point_sets=TRACE_SETS)
    return tuple(sample_inputs(kind, hyperparameters, case, seed=0))


def _trace(
    graph: torch.nn.Module,
    example: tuple[Any, ...],
    axes: Sequence[dict[int, Any]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> torch.onnx.ONNXProgram:
    shapes = iter(axes)
    of_items = [[next(shapes) for _ in item] if isinstance(item, list) else next(shapes) for item in example]
    # What follows the ground truth is one parameter, `*further`.
    further = len(inputs) - 1 - [spec.name for spec in inputs].index("mask_gt")
    named = len(of_items) - further
    dynamic_shapes = (*of_items[:named], *([tuple(of_items[named:])] if further else []))
    # These would log every skipped torchvision operator and every empty list among the attributes.
    for name in ("torch.onnx._internal.exporter._registration", "onnx_ir._convenience"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # With symbolic axes, looking up what an operator gives in torch's cache takes longer than computing it: with the
    # cache an export takes a fifth to a third longer.
    with warnings.catch_warnings(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        warnings.simplefilter("ignore")  # deprecations inside the exporter; `verify` finds wrong results
        program = torch.onnx.export(
            trace(graph, example, dynamic_shapes),
            dynamo=True,
            dynamic_shapes=dynamic_shapes,  # for the names of the axes
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            # The default optimizer treats 1e-9 as zero and silently drops `+ eps`.
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return program


def _dynamic_axes(specs: Sequence[TensorSpec], strides: Sequence[float]) -> list[dict[int, Any]]:
    axes = [{index: axis for index, axis in enumerate(spec.axes) if isinstance(axis, str)} for spec in specs]
    dims = {letter: _dim(letter, strides) for letters in axes for letter in letters.values()}
    return [{index: dims[letter] for index, letter in letters.items()} for letters in axes]


def _dim(letter: str, strides: Sequence[float]) -> Any:
    if letter in ("H", "W"):
        # The sides of an image are whole cells of the coarsest map.
        return int(strides[-1]) * _dim(f"{letter}{len(strides) - 1}", strides)
    return torch.export.Dim(letter, max=LARGEST_AXIS)


def _simplify(model: ir.Model) -> None:
    """Fold constants and remove dead nodes, as TensorRT's parser requires; neither changes a result."""
    optimizer.fold_constants(model)
    _skip_idle_transposes(model.graph)
    optimizer.remove_unused_nodes(model)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with local paths, most of the file
        node.doc_string = None


def _skip_idle_transposes(graph: ir.Graph) -> None:
    """Remove identity transposes, which the exporter emits for indexing and runtimes execute as copies."""
    for node in graph:
        perm = list(node.attributes.get_ints("perm", [])) if node.op_type == "Transpose" else []
        before, after = node.inputs[0] if node.inputs else None, node.outputs[0]
        if perm and perm == sorted(perm) and before is not None and not after.is_graph_output():
            after.replace_all_uses_with(before)


def _versions() -> dict[str, str]:
    # The version of this project is imported, so that a checkout exports without an installation.
    libraries = {package: version(package) for package in ("torch", "onnx", "onnxscript")}
    return {"yolo-assigner": __version__, **libraries, "opset": str(OPSET)}
