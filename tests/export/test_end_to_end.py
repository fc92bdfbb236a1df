"""Detectors with a one-to-many and a one-to-one branch, and the losses of both in one graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from tests.exports import END_TO_END, NUM_CLASSES, exported
from yolo_assigner.export import cli
from yolo_assigner.export.contract import Contract, ContractError, load_contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_detector_inputs
from yolo_assigner.export.to_onnx.detector import detector_config, detector_from_onnx
from yolo_assigner.export.verification.command import report, summary
from yolo_assigner.export.verification.verify import verify_model
from yolo_assigner.models import DetectionModel, DetectorConfig, EndToEndDetections
from yolo_loss import EndToEndLoss, GroundTruth

STRIDES = (8, 16, 32)
SHARE = 0.45
Outputs = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def folder() -> Path:
    """With reg_max 1, as YOLO26 has it, and the share of the third of five epochs."""
    return exported("detector_loss", "sparse", **END_TO_END)


@pytest.fixture
def contract(folder: Path) -> Contract:
    return load_contract(folder / "detector_loss.json")


def run(folder: Path, inputs: tuple[torch.Tensor, ...]) -> Outputs:
    session = ort.InferenceSession(folder / "detector_loss.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    feed = zip(("images", "gt_labels", "gt_bboxes", "mask_gt"), inputs, strict=True)
    return dict(zip(names, session.run(names, {name: tensor.numpy() for name, tensor in feed}), strict=True))


def test_every_output_of_both_branches_agrees_with_float64(folder: Path, contract: Contract) -> None:
    differences = verify_model(folder / "detector_loss.onnx", contract)
    outputs = {spec.name for spec in contract.outputs} - {"predictions"}
    maps = {f"{branch}_map_{level}" for branch in ("one2many", "one2one") for level in range(3)}
    assert {d.output for d in differences} == outputs | maps | {"predictions (boxes)", "predictions (classes)"}
    assert [d for d in differences if not d.passed] == []
    assert all(any(d.largest > 0 for d in differences if d.output == name) for name in maps)
    # The command's tables count both branches.
    wrong = [d._replace(largest=3.0) if d.output == "one2many_fg_mask" else d for d in differences[-30:]]
    line = summary([(contract, wrong)]).splitlines()[2]
    assert line.startswith(f"| detector_loss | sparse | fp32 | {3 * sum(d.largest == 3 for d in wrong)} |")
    assert "FAILED" in line
    assert "| one2many_loss |" in report(contract, differences)


@pytest.mark.parametrize("slots", [5, 0])
def test_it_computes_what_the_modules_compute(folder: Path, slots: int) -> None:
    """The loss with the share of its epoch; items, targets and predictions of the one-to-one branch."""
    inputs = sample_detector_inputs(Case(3, slots, pyramid(96, 160, STRIDES), NUM_CLASSES), STRIDES, seed=7)
    detector = DetectionModel(DetectorConfig("n", NUM_CLASSES, 1, end_to_end=True))
    detector.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
    criterion = EndToEndLoss(NUM_CLASSES, STRIDES, 1, epochs=5)
    criterion.updates = 2
    assert criterion.one2many_share == pytest.approx(SHARE, rel=1e-14)
    with torch.no_grad():
        found = detector.eval()(inputs[0])
        assert isinstance(found, EndToEndDetections)
        want = criterion.evaluate(found, ragged_batch(GroundTruth(*inputs[1:]), (96, 160)))
    got = run(folder, inputs)
    np.testing.assert_allclose(got["loss"], want.loss, rtol=1e-4)
    for name, part in (("one2one", want.one2one), ("one2many", want.one2many)):
        np.testing.assert_allclose(got[f"{name}_loss"], part.loss, rtol=1e-4)
    assert got["loss"] == pytest.approx(SHARE * got["one2many_loss"] + (1 - SHARE) * got["one2one_loss"], rel=1e-6)
    np.testing.assert_allclose(got["loss_items"], want.loss_items, rtol=1e-4)
    np.testing.assert_allclose(got["one2many_loss_items"], want.one2many.loss_items, rtol=1e-4)
    np.testing.assert_array_equal(got["fg_mask"], want.one2one.assignment.fg_mask)
    np.testing.assert_array_equal(got["one2many_fg_mask"], want.one2many.assignment.fg_mask)
    np.testing.assert_allclose(got["predictions"][:, 4:], found.predictions[:, 4:], atol=1e-3)
    assert got["fg_mask"].any() == bool(slots)
    # One anchor at most for each of the boxes, and more in the other branch.
    assert got["fg_mask"].sum(axis=1).max() <= slots
    assert got["one2many_fg_mask"].sum() > got["fg_mask"].sum() or not slots


def test_the_contract_says_what_was_exported(contract: Contract) -> None:
    values = contract.hyperparameters
    assert (values["end_to_end"], values["one2many_share"]) == (True, SHARE)
    assert (values["topk"], values["topk_one2one"], values["topk2_one2one"]) == (10, 7, 1)
    assert contract.terms == ("box", "cls", "l1")
    assert [spec.name for spec in contract.inputs] == ["images", "gt_labels", "gt_bboxes", "mask_gt"]
    axes = {spec.name: spec.axes for spec in contract.outputs}
    assert list(axes)[-8:] == [
        "one2one_loss",
        "one2many_loss",
        "one2many_loss_items",
        "one2many_image_sums",
        "one2many_fg_mask",
        "one2many_target_gt_idx",
        "one2many_target_weights",
        "predictions",
    ]
    assert axes["one2many_image_sums"] == axes["image_sums"] == ("B", 4)


def test_weights_of_one_branch_are_refused(detector_dir: Path, folder: Path, tmp_path: Path) -> None:
    one = Hyperparameters(num_classes=NUM_CLASSES, scale="n", reg_max=1)
    assert not detector_config(one).end_to_end
    with pytest.raises(ContractError, match="and 1 branches; export it again"):
        detector_from_onnx(folder / "detector_loss.onnx", one)
    words = f"--num-classes 3 --scale n --end-to-end --weights {detector_dir / 'weights.safetensors'}"
    assert cli.main(["onnx", "--model", "detector_loss", "--out", str(tmp_path), *words.split()]) == 2
    assert list(tmp_path.iterdir()) == []


def test_kinds_without_a_detector_refuse_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["onnx", "--model", "loss", "--end-to-end", "--out", str(tmp_path)]) == 2
    assert "end_to_end is True, but loss has no detector; leave it out or export" in capsys.readouterr().err
