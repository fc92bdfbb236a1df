"""Graphs with class weights and regions to ignore: as inputs, and weights as constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from tests.exports import EVERY_INPUT, OTHER_DETECTOR, exported
from yolo_assigner.export.contract import Contract, load_contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import Case, pyramid, sample_inputs
from yolo_assigner.export.specs import input_specs
from yolo_assigner.export.to_tensorrt.profiles import parse_profile, resolve_profile
from yolo_assigner.export.verification.reference import flatten
from yolo_assigner.export.verification.verify import verify_model

BOTH = ("class_weights", "ignore_bboxes")
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "l1": ("loss_grad", "sparse", {**EVERY_INPUT, "reg_max": 1, "class_weights": (0.5, 0.0, 2.0)}),
    "dense": ("loss_grad", "dense", EVERY_INPUT),
    "served": ("loss", "sparse", EVERY_INPUT),
    "detector": ("detector_loss", "sparse", OTHER_DETECTOR),
}


def model(name: str) -> Path:
    kind, implementation, options = MODELS[name]
    return exported(kind, implementation, **options) / f"{kind}.onnx"


@pytest.mark.parametrize("name", MODELS)
def test_every_output_agrees_with_float64(name: str) -> None:
    path = model(name)
    contract = load_contract(path.with_suffix(".json"))
    numbers = Hyperparameters.from_contract(contract.hyperparameters)
    assert contract.inputs == input_specs(contract.kind, numbers)
    wanted = numbers.extra_inputs or ()
    names = [spec.name for spec in contract.inputs]
    assert [extra for extra in ("class_weights", "ignore_bboxes", "mask_ignore") if extra in names] == [
        extra
        for extra, owner in zip(("class_weights", "ignore_bboxes", "mask_ignore"), (*BOTH, BOTH[1]), strict=True)
        if owner in wanted
    ]
    assert [d for d in verify_model(path, contract) if not d.passed] == []
    _check_that_they_count(path, contract.kind, numbers)


def _check_that_they_count(path: Path, kind: str, numbers: Hyperparameters) -> None:
    """Weights of 0, or a region over everything, leave no class sum of the background; NaN adds nothing there."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = sample_inputs(kind, numbers, Case(2, 4, pyramid(64, 128, numbers.strides), 3, regions=1), seed=7)
    names = [node.name for node in session.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(names, flatten(inputs), strict=True)}
    if "class_weights" in feed:
        feed["class_weights"] = np.zeros_like(feed["class_weights"])
    else:
        feed["mask_gt"] = np.zeros_like(feed["mask_gt"])
        feed["ignore_bboxes"] = np.tile(np.array([-1, -1, 129, 65], np.float32), (2, 1, 1))
        feed["mask_ignore"] = np.ones((2, 1, 1), bool)
    if "feat_0" in feed:
        feed["feat_0"][:, -3:, 0, 0] = np.nan
    (sums,) = session.run(["image_sums"], feed)
    assert (sums[:, 1] == 0).all()
    assert np.isfinite(sums).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"extra_inputs": ("weights",)},
            r"extra_inputs\[0\] is 'weights', expected one of class_weights, ",
        ),
        ({"class_weights": (1.0, 2.0)}, "class_weights is 2 numbers, expected 80 numbers, one for each class"),
        ({"class_weights": (-1.0,), "num_classes": 1}, r"class_weights\[0\] is -1.0, expected a finite number"),
    ],
)
def test_what_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Hyperparameters(**options)


def test_the_form_of_the_names_is_one() -> None:
    assert Hyperparameters(extra_inputs=()).extra_inputs is None
    assert Hyperparameters(extra_inputs=("ignore_bboxes", "class_weights")).extra_inputs == BOTH
    assert "extra_inputs" not in Hyperparameters().as_contract()
    assert "extra_inputs" not in Hyperparameters(extra_inputs=BOTH).criterion_arguments()


def test_engines_have_sizes_for_regions(tmp_path: Path) -> None:
    numbers = Hyperparameters(num_classes=3, extra_inputs=BOTH)
    contract = load_contract(_contract_of(tmp_path, numbers))
    assert resolve_profile(parse_profile([]), contract)["I"] == (0, 4, 64)
    assert resolve_profile(parse_profile(["I=0,1,2"]), contract)["I"] == (0, 1, 2)


def _contract_of(folder: Path, numbers: Hyperparameters) -> Path:
    contract = Contract("x", "loss", "x.onnx", "", "dense", numbers.as_contract(), input_specs("loss", numbers), (), {})
    contract.save(folder / "x.json")
    return folder / "x.json"


def test_samples_have_weights_of_0() -> None:
    numbers = Hyperparameters(num_classes=3, extra_inputs=BOTH)
    *_, weights, boxes, mask = sample_inputs("loss", numbers, Case(4, 2, pyramid(64, 64, (8, 16, 32)), 3), seed=0)
    assert isinstance(weights, torch.Tensor)
    assert isinstance(boxes, torch.Tensor)
    assert isinstance(mask, torch.Tensor)
    assert 0 < int((weights == 0).sum()) < weights.numel()
    assert (boxes.shape, mask.shape) == ((4, 2, 4), (4, 2, 1))
