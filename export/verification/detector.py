"""A detector with its loss beside torch float64, each half by itself.

Rounding in sixty layers reaches the maps, and an anchor that is chosen by the last digit of a metric is then another
one. So the network is measured by its maps; and what stands behind the maps gets seeded maps in place of the
network's, and is held to what a model of kind ``loss`` is held to.

The reference takes the weights from the file: what was lost when they were rounded to 16 bits is in no figure here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import ir, optimizer

from yolo_assigner.export.contract import Contract, TensorSpec
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import sample_loss_inputs
from yolo_assigner.export.specs import map_specs, output_specs
from yolo_assigner.export.to_onnx.detector import detector_from_onnx
from yolo_assigner.export.verification.comparison import Difference, case_inputs, compare, verification_cases
from yolo_assigner.export.verification.reference import Reference, to_float64
from yolo_assigner.export.verification.runnable import Runnable, in_types
from yolo_assigner.models.head import STRIDES

# How far a map may lie from float64, relative to its largest magnitude. Measured:
# 7e-7, 2e-3 and 7e-3 for a trained n detector, up to 1.4e-5, 3e-2 and 1.6e-1 for random ones of all scales, whose
# normalisations amplify far more.
NETWORK_TOLERANCES = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 2.5e-1}


def verify_detector(path: Path, contract: Contract) -> list[Difference]:
    """Both halves, in ONNX Runtime and in torch float64.

    Args:
        path: The ONNX file of a ``detector_loss``, from which the reference takes the weights, too.
        contract: Its contract.

    Returns:
        One difference per case and output; those of a raw map, and of boxes and classes of the predictions, apart.

    Raises:
        CannotRunError: ONNX Runtime has no kernels for it on the CPU.
        ContractError: The file does not hold the detector that the contract describes.
    """
    return [*verify_network(path, contract), *verify_behind_maps(path, contract)]


@torch.no_grad()
def verify_network(path: Path, contract: Contract) -> list[Difference]:
    """Pictures to maps beside float64, and to predictions beside what follows from the model's own maps."""
    numbers = Hyperparameters.from_contract(contract.hyperparameters)
    detector = detector_from_onnx(path, numbers).double()
    maps = map_specs(contract.kind, numbers)
    model = Runnable(_with_outputs(onnx.load(path), maps), contract.inputs)
    names = [spec.name for spec in maps]
    differences: list[Difference] = []
    for seed, case in enumerate(verification_cases(contract.kind, numbers)):
        inputs = in_types(case_inputs(contract.kind, numbers, case, seed + 1), contract.inputs)
        got = model(inputs, [*names, *(spec.name for spec in contract.outputs)])
        want = dict(zip(names, detector(to_float64(inputs)[0]).maps, strict=True))
        differences += compare(case, got, want, NETWORK_TOLERANCES[contract.precision])
        own = [torch.from_numpy(got[name]).double() for name in names]
        differences += compare(case, _parts(got), _parts({"predictions": detector.head.decode(own)}))
    return differences


@torch.no_grad()
def verify_behind_maps(path: Path, contract: Contract) -> list[Difference]:
    """All that is computed from maps, which are seeded ones here, beside float64."""
    numbers = Hyperparameters.from_contract(contract.hyperparameters)
    head = detector_from_onnx(path, numbers).double().head
    specs = (*contract.inputs, *map_specs(contract.kind, numbers))
    model = Runnable(_with_inputs(onnx.load(path), specs[len(contract.inputs) :]), specs)
    reference = Reference("loss", numbers, contract.formulation)
    names = [spec.name for spec in output_specs("loss", numbers)]
    differences: list[Difference] = []
    for seed, case in enumerate(verification_cases("loss", numbers)):
        maps, *truth = sample_loss_inputs(case, numbers.strides, numbers.reg_max, seed + 1)
        # Only their shape is read.
        images = torch.zeros((case.batch, 3, *(cells * STRIDES[0] for cells in case.grids[0])))
        got = model(in_types([images, *truth, maps], specs), [spec.name for spec in contract.outputs])
        want = dict(zip(names, reference([maps, *truth]), strict=True))
        want["predictions"] = head.decode([level.double() for level in maps])
        differences += compare(case, _parts(got), _parts(want))
    return differences


def _parts(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Predictions in two: beside boxes of hundreds of pixels no probability would count."""
    values = dict(outputs)
    predictions = values.pop("predictions")
    return {**values, "predictions (boxes)": predictions[:, :4], "predictions (classes)": predictions[:, 4:]}


def _with_outputs(model: onnx.ModelProto, maps: Sequence[TensorSpec]) -> onnx.ModelProto:
    """A copy that gives the maps as well."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(spec.name, onnx.TensorProto.FLOAT, spec.axes) for spec in maps
    )
    return copy


def _with_inputs(model: onnx.ModelProto, maps: Sequence[TensorSpec]) -> onnx.ModelProto:
    """A copy that takes the maps in place of computing them."""
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
