"""Verification of exported models: ONNX Runtime against torch float64, with inputs of other sizes than for tracing.

The two halves of a model with a detector are verified separately. Rounding in sixty layers reaches the maps, and an
anchor that is chosen by the last digit of a metric may then be another one. So the network is measured by its maps, and
the rest gets seeded maps instead of the network's, with the tolerances of a ``loss``. The reference takes the weights
from the file, so the error of rounding them to 16 bits is not included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import ir, optimizer
from torch import Tensor

from yolo_assigner.export.contract import DETECTOR_KINDS, Contract, TensorSpec
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import sample_behind_maps, sample_inputs
from yolo_assigner.export.specs import map_specs
from yolo_assigner.export.to_onnx.detector import detector_from_onnx
from yolo_assigner.export.to_onnx.graphs import all_levels
from yolo_assigner.export.verification.comparison import Difference, compare, verification_cases
from yolo_assigner.export.verification.reference import Reference, to_float64
from yolo_assigner.export.verification.runnable import Runnable, in_types
from yolo_assigner.models import DetectionModel

# Largest difference of a map from float64, relative to its largest magnitude. Measured: 7e-7, 2e-3 and 7e-3 for a
# trained n detector; up to 1.4e-5, 3e-2 and 1.6e-1 for random ones of all scales, whose normalizations amplify more.
NETWORK_TOLERANCES = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 2.5e-1}


def verify_model(path: Path, contract: Contract) -> list[Difference]:
    """Compare a model in ONNX Runtime with torch in float64.

    Args:
        path: The ONNX file. The reference of a detector takes the weights from it.
        contract: Its contract, which supplies the hyper-parameters.

    Returns:
        One difference per case and output. For a detector raw maps are included, and predictions are split
        into boxes and classes.

    Raises:
        CannotRunError: ONNX Runtime cannot run the model on the CPU.
        ContractError: The file does not hold the detector that the contract describes.
    """
    if contract.kind in DETECTOR_KINDS:
        return [*verify_network(path, contract), *verify_behind_maps(path, contract)]
    model = Runnable(path, contract.inputs)
    hyperparameters = Hyperparameters.from_contract(contract.hyperparameters)
    reference = Reference(contract.kind, hyperparameters, contract.formulation)
    names = [spec.name for spec in contract.outputs]
    differences: list[Difference] = []
    cases = verification_cases(contract.kind, hyperparameters)
    if not any("S" in spec.axes for spec in contract.inputs):  # as of earlier releases: points (A, 2)
        cases = [case._replace(point_sets=0) for case in cases]
    for seed, case in enumerate(cases):
        inputs = in_types(sample_inputs(contract.kind, hyperparameters, case, seed + 1), contract.inputs)
        want = dict(zip(names, reference(inputs), strict=True))
        differences += compare(case, *_comparable(model(inputs, names), want))
    return differences


def _comparable(got: Mapping[str, Any], want: Mapping[str, Tensor]) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Replace ranks, if there are as many of them, in both."""
    if "pair_rank" not in want or got["pair_rank"].shape != tuple(want["pair_rank"].shape):
        return got, want
    metric = want["pair_metric"]
    return _with_ranked_metrics(got, metric.numpy()), _with_ranked_metrics(want, metric)


def _with_ranked_metrics(outputs: Mapping[str, Any], metric: Any) -> dict[str, Any]:
    """Replace ranks by the reference's metrics in their order: rounding may swap candidates of nearly equal ones.

    Args:
        outputs: Those of ``explain``, arrays or tensors.
        metric: (P,) t of each pair in the reference, as the outputs are.
    """
    order = np.lexsort([np.asarray(outputs[name]) for name in ("pair_rank", "pair_slot", "pair_image")])
    others = {name: values for name, values in outputs.items() if name != "pair_rank"}
    return {**others, "pair_rank (metrics in its order)": metric[order]}


@torch.no_grad()
def verify_network(path: Path, contract: Contract) -> list[Difference]:
    """Compare a detector's maps with float64, and its predictions with those of its own maps."""
    hyperparameters = Hyperparameters.from_contract(contract.hyperparameters)
    detector = detector_from_onnx(path, hyperparameters).double()
    maps = map_specs(contract.kind, hyperparameters)
    model = Runnable(_with_outputs(onnx.load(path), maps), contract.inputs)
    names = [spec.name for spec in maps]
    differences: list[Difference] = []
    for seed, case in enumerate(verification_cases(contract.kind, hyperparameters)):
        inputs = in_types(sample_inputs(contract.kind, hyperparameters, case, seed + 1), contract.inputs)
        got = model(inputs, [*names, *(spec.name for spec in contract.outputs)])
        want = dict(zip(names, all_levels(detector(to_float64(inputs)[0]).maps), strict=True))
        differences += compare(case, got, want, NETWORK_TOLERANCES[contract.precision])
        own = [torch.from_numpy(got[name]) for name in names]
        differences += compare(case, _parts(got), _parts({"predictions": _predictions(detector, own)}))
    return differences


@torch.no_grad()
def verify_behind_maps(path: Path, contract: Contract) -> list[Difference]:
    """Compare everything that is computed from the maps, replaced by seeded ones, with float64."""
    hyperparameters = Hyperparameters.from_contract(contract.hyperparameters)
    detector = detector_from_onnx(path, hyperparameters).double()
    specs = (*contract.inputs, *map_specs(contract.kind, hyperparameters))
    model = Runnable(_with_inputs(onnx.load(path), specs[len(contract.inputs) :]), specs)
    reference = Reference(contract.kind, hyperparameters, contract.formulation)
    names = [spec.name for spec in contract.outputs]
    differences: list[Difference] = []
    for seed, case in enumerate(verification_cases("loss", hyperparameters)):
        maps, truth = sample_behind_maps(hyperparameters, case, seed + 1)
        # Only the shape of the images is read.
        images = torch.zeros((case.batch, 3, *(int(cells * hyperparameters.strides[0]) for cells in case.grids[0])))
        got = model(in_types([images, *truth, maps], specs), [spec.name for spec in contract.outputs])
        want = dict(zip(names, [*reference([maps, *truth]), _predictions(detector, maps)], strict=True))
        differences += compare(case, *_comparable(_parts(got), _parts(want)))
    return differences


def _predictions(detector: DetectionModel, maps: Sequence[Tensor]) -> Tensor:
    """Decode maps in float64; with two branches those of the one-to-one branch, which come last."""
    return detector.head.decode([level.double() for level in maps[-len(detector.head.strides) :]])


def _parts(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Split predictions, because boxes of hundreds of pixels would hide differences of probabilities."""
    values = dict(outputs)
    predictions = values.pop("predictions")
    return {**values, "predictions (boxes)": predictions[:, :4], "predictions (classes)": predictions[:, 4:]}


def _with_outputs(model: onnx.ModelProto, maps: Sequence[TensorSpec]) -> onnx.ModelProto:
    """Return a copy of the model with the maps as further outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(spec.name, onnx.TensorProto.FLOAT, spec.axes) for spec in maps
    )
    return copy


def _with_inputs(model: onnx.ModelProto, maps: Sequence[TensorSpec]) -> onnx.ModelProto:
    """Return a copy of the model that takes the maps as inputs instead of computing them."""
    copy = ir.from_proto(model)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    for spec in maps:
        computed = values[spec.name]
        given = ir.Value(name=spec.name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(spec.axes))
        computed.replace_all_uses_with(given)
        computed.name = f"{spec.name}_computed"
        copy.graph.inputs.append(given)
    optimizer.remove_unused_nodes(copy)
    return ir.to_proto(copy)
