"""The exported explanation: verified, equal to torch's, and refused where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from tests.detectors import lively_detector
from tests.exports import exported
from yolo_assigner.export import cli
from yolo_assigner.export.contract import load_contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.repository.config import load_config
from yolo_assigner.export.samples import Case, pyramid, sample_detector_inputs, sample_loss_inputs
from yolo_assigner.export.specs import output_specs
from yolo_assigner.export.to_onnx.detector import detector_config
from yolo_assigner.export.to_onnx.graphs import build_graph
from yolo_assigner.export.verification.verify import verify_model
from yolo_loss import DetectionLoss, GroundTruth
from yolo_loss.explain import Reason
from yolo_loss.explain.explain import explain_padded, explanation_outputs
from yolo_loss.predictions import join_predictions

STRIDES = (8.0, 16.0, 32.0)
OTHER: dict[str, Any] = {
    "topk2": 2,
    "min_box_side": 16.0,
    "extra_inputs": ("class_weights", "ignore_bboxes"),
    "reg_max": 1,
}


@pytest.fixture(scope="module")
def folder() -> Path:
    return exported("explain", "sparse")


def test_every_output_agrees_with_float64(folder: Path) -> None:
    contract = load_contract(folder / "explain.json")
    differences = verify_model(folder / "explain.onnx", contract)
    names = {spec.name for spec in contract.outputs}
    assert {difference.output.split(" ")[0] for difference in differences} == names
    assert [difference for difference in differences if not difference.passed] == []


def test_options_are_exported() -> None:
    made = exported("explain", "sparse", **OTHER)
    assert [d for d in verify_model(made / "explain.onnx", load_contract(made / "explain.json")) if not d.passed] == []


def test_verification_notices_a_wrong_rank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ort.InferenceSession.run_with_ort_values

    def spoil(session: ort.InferenceSession, names: list[str], feed: dict[str, ort.OrtValue]) -> list[ort.OrtValue]:
        values: list[ort.OrtValue] = run(session, names, feed)
        place = names.index("pair_rank")
        values[place] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values[place].numpy()[::-1]))
        return values

    monkeypatch.setattr(ort.InferenceSession, "run_with_ort_values", spoil)
    differences = verify_model(folder / "explain.onnx", load_contract(folder / "explain.json"))
    assert {difference.output for difference in differences if not difference.passed} == {
        "pair_rank (metrics in its order)"
    }


@pytest.mark.parametrize("case", [Case(2, 25, pyramid(96, 96, STRIDES), 3), Case(1, 0, pyramid(32, 64, STRIDES), 3)])
def test_graph_and_torch_explain_alike(folder: Path, case: Case) -> None:
    feats, *truth = sample_loss_inputs(case, STRIDES, 16, 0)
    criterion = DetectionLoss(3)
    predictions = join_predictions(feats, STRIDES, 3, 16)
    want = explanation_outputs(explain_padded(criterion, predictions, GroundTruth(*truth)))
    session = ort.InferenceSession(folder / "explain.onnx", providers=["CPUExecutionProvider"])
    feed = {node.name: t.numpy() for node, t in zip(session.get_inputs(), [*feats, *truth], strict=True)}
    got = dict(zip((node.name for node in session.get_outputs()), session.run(None, feed), strict=True))
    assert list(got) == list(want)
    assert case.slots == 0 or {Reason.ASSIGNED, Reason.CONTESTED} <= set(got["reason"].flatten().tolist())
    for name, array in got.items():
        assert array.shape == tuple(want[name].shape), name
        if name != "pair_rank":  # candidates whose metrics are equal but for rounding may be swapped
            np.testing.assert_allclose(array, want[name].numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_detector_explains_images() -> None:
    """Its maps and what follows them are verified as those of a `detector_loss`."""
    made = exported("detector_explain", "sparse")
    contract = load_contract(made / "detector_explain.json")
    differences = verify_model(made / "detector_explain.onnx", contract)
    names = {spec.name for spec in contract.outputs} | {"map_0", "map_1", "map_2"}
    assert {difference.output.split(" ")[0] for difference in differences} == names
    assert [difference for difference in differences if not difference.passed] == []
    assert contract.inputs[0].name == "images"


def test_of_two_branches_the_first_is_explained() -> None:
    options = Hyperparameters(num_classes=3, scale="n", end_to_end=True, topk=7)
    detector = lively_detector(detector_config(options))
    images, *truth = sample_detector_inputs(Case(1, 8, pyramid(96, 96, STRIDES), 3), STRIDES, 0)
    with torch.no_grad():
        got = build_graph("detector_explain", options, "sparse", detector)(images, *truth)
        maps = detector(images).maps["one2many"]
    predictions = join_predictions(maps, STRIDES, 3, 16)
    want = explanation_outputs(explain_padded(DetectionLoss(3, topk=7), predictions, GroundTruth(*truth)))
    for name, array in zip(want, got, strict=False):
        assert torch.equal(array, want[name]), name


def test_specs_name_the_fields_in_their_order() -> None:
    hyperparameters = Hyperparameters(num_classes=3)
    feats, *truth = sample_loss_inputs(Case(2, 3, pyramid(64, 64, STRIDES), 3), STRIDES, 16, 0)
    predictions = join_predictions(feats, STRIDES, 3, 16)
    want = explanation_outputs(explain_padded(DetectionLoss(3), predictions, GroundTruth(*truth)))
    specs = output_specs("explain", hyperparameters)
    assert [spec.name for spec in specs] == list(want)
    sizes = {"B": 2, "M": 3, "P": len(want["pair_iou"])}
    for spec in specs:
        assert want[spec.name].dtype == getattr(torch, spec.dtype)
        assert list(want[spec.name].shape) == [axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes]


def test_dense_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="explain lists candidate pairs, which only sparse does; export it for ONNX"):
        build_graph("explain", Hyperparameters(num_classes=3), "dense")
    words = ["onnx", "--model", "explain", "--for", "tensorrt", "--out", str(tmp_path)]
    assert cli.main(words) == 2
    assert "which only sparse does" in capsys.readouterr().err


def test_engines_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tensorrt", str(folder / "explain.onnx"), "--out", str(tmp_path)]) == 2
    assert "TensorRT has no lists; serve the ONNX file" in capsys.readouterr().err
    file = tmp_path / "build.toml"
    file.write_text('[[models]]\nkinds = ["loss", "explain"]\ntargets = ["onnxruntime", "tensorrt-rtx"]\n')
    with pytest.raises(ValueError, match=r'explain lists candidate pairs.*targets = \["onnxruntime"\]'):
        load_config(file)
