"""A detector and its loss in one graph: from images and boxes to losses and detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto

from tests.exports import NUM_CLASSES, OTHER_DETECTOR, exported
from yolo_assigner.export import cli
from yolo_assigner.export.contract import ContractError, load_contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import Case, pyramid, sample_detector_inputs
from yolo_assigner.export.to_onnx.detector import check_weights, detector_from_onnx, load_detector_weights
from yolo_assigner.export.verification.verify import verify_behind_maps, verify_model, verify_network
from yolo_assigner.models import DetectionModel, Detections, DetectorConfig, read_state_dict
from yolo_loss import DetectionLoss, GroundTruth
from yolo_loss.predictions import join_predictions

MAPS = {"map_0", "map_1", "map_2"}


def exported_detector(folder: Path) -> DetectionModel:
    """Load the exported detector. A new one would differ: its statistics depend on the number of threads."""
    detector = DetectionModel(DetectorConfig("n", NUM_CLASSES))
    detector.load_state_dict(read_state_dict(folder / "weights.safetensors"))
    return detector.eval()


def test_both_halves_agree_with_float64(detector_dir: Path) -> None:
    contract = load_contract(detector_dir / "detector_loss.json")
    differences = verify_model(detector_dir / "detector_loss.onnx", contract)
    outputs = {spec.name for spec in contract.outputs} - {"predictions"}
    assert {d.output for d in differences} == outputs | MAPS | {"predictions (boxes)", "predictions (classes)"}
    assert [d for d in differences if not d.passed] == []
    # The comparison is not vacuous: the maps do have rounding errors.
    assert all(any(d.largest > 0 for d in differences if d.output == name) for name in MAPS)


def test_the_dense_half_agrees_with_float64(dense_detector_dir: Path) -> None:
    """Only the half behind the maps depends on the implementation."""
    contract = load_contract(dense_detector_dir / "detector_loss.json")
    differences = verify_behind_maps(dense_detector_dir / "detector_loss.onnx", contract)
    assert {spec.name for spec in contract.outputs} - {"predictions"} <= {d.output for d in differences}
    assert [d for d in differences if not d.passed] == []


def test_a_detector_of_four_levels_without_distributions() -> None:
    """All else about it is in ``test_extra_inputs``, for it also takes regions to ignore."""
    strides = OTHER_DETECTOR["strides"]
    folder = exported("detector_loss", "sparse", **OTHER_DETECTOR)
    images, *boxes = sample_detector_inputs(Case(2, 5, pyramid(128, 192, strides), NUM_CLASSES), strides, seed=7)
    detector = DetectionModel(DetectorConfig("n", NUM_CLASSES, 1, "p6"))
    detector.load_state_dict(read_state_dict(folder / "weights.safetensors"))
    criterion = DetectionLoss(NUM_CLASSES, strides, 1)
    with torch.no_grad():
        joined = join_predictions(detector.eval()(images).maps, strides, NUM_CLASSES, 1)
        want = criterion.from_padded(joined, GroundTruth(*boxes)).loss_items
    session = ort.InferenceSession(folder / "detector_loss.onnx", providers=["CPUExecutionProvider"])
    regions = torch.zeros((2, 0, 4)), torch.zeros((2, 0, 1), dtype=torch.bool)
    feed = zip((node.name for node in session.get_inputs()), (images, *boxes, *regions), strict=True)
    (items,) = session.run(["loss_items"], {name: tensor.numpy() for name, tensor in feed})
    np.testing.assert_allclose(items, want, rtol=1e-4)
    assert (items > 0).all()


@pytest.mark.parametrize(("slots", "image"), [(5, (96, 256)), (0, (64, 64))])
def test_it_computes_what_the_modules_compute(detector_dir: Path, slots: int, image: tuple[int, int]) -> None:
    strides = (8, 16, 32)
    images, *boxes = sample_detector_inputs(Case(3, slots, pyramid(*image, strides), NUM_CLASSES), strides, seed=7)
    detector, criterion = exported_detector(detector_dir), DetectionLoss(NUM_CLASSES)
    with torch.no_grad():
        found = detector(images)
        assert isinstance(found, Detections)
        joined = join_predictions(found.maps, criterion.strides, NUM_CLASSES, criterion.reg_max)
        want = criterion.from_padded(joined, GroundTruth(*boxes))
    session = ort.InferenceSession(detector_dir / "detector_loss.onnx", providers=["CPUExecutionProvider"])
    feed = zip(("images", "gt_labels", "gt_bboxes", "mask_gt"), (images, *boxes), strict=True)
    names = ["loss", "loss_items", "fg_mask", "predictions"]
    loss, items, mask, predictions = session.run(names, {name: tensor.numpy() for name, tensor in feed})
    np.testing.assert_allclose(loss, want.loss, rtol=1e-4)
    np.testing.assert_allclose(items, want.loss_items, rtol=1e-4)
    np.testing.assert_array_equal(mask, want.assignment.fg_mask)
    assert mask.any() == bool(slots)
    np.testing.assert_allclose(predictions[:, :4], found.predictions[:, :4], atol=0.01)  # pixels
    np.testing.assert_allclose(predictions[:, 4:], found.predictions[:, 4:], atol=1e-3)
    assert np.ptp(predictions[:, 4:]) > 0.5  # the predictions of anchors differ


def test_contract_describes_inputs_and_outputs(detector_dir: Path) -> None:
    contract = load_contract(detector_dir / "detector_loss.json")
    assert [(spec.name, spec.axes) for spec in contract.inputs] == [
        ("images", ("B", 3, "H", "W")),
        ("gt_labels", ("B", "M", 1)),
        ("gt_bboxes", ("B", "M", 4)),
        ("mask_gt", ("B", "M", 1)),
    ]
    assert contract.outputs[-1].axes == ("B", 4 + NUM_CLASSES, "A")
    assert {spec.name for spec in contract.outputs} - set(contract.default_outputs) == {"target_scores"}
    hyperparameters = Hyperparameters.from_contract(contract.hyperparameters)
    assert (hyperparameters.scale, hyperparameters.num_classes) == ("n", NUM_CLASSES)
    assert hyperparameters.strides == (8.0, 16.0, 32.0)
    # The maps have names inside the graph, but are not outputs.
    model = onnx.load(detector_dir / "detector_loss.onnx")
    assert [output.name for output in model.graph.output] == [spec.name for spec in contract.outputs]
    assert {output for node in model.graph.node for output in node.output} >= MAPS


def test_kinds_without_detector_are_described_as_before() -> None:
    values = Hyperparameters().as_contract()
    assert "scale" not in values
    # Contracts of earlier releases lack it, too, and are loaded.
    assert Hyperparameters.from_contract(values).scale is None


def test_weights_are_stored_unchanged(detector_dir: Path) -> None:
    state = read_state_dict(detector_dir / "weights.safetensors")
    weights = load_detector_weights(detector_dir / "detector_loss.onnx")
    assert {name for name in state if name not in weights} == {n for n in state if n.endswith("num_batches_tracked")}
    assert all(torch.equal(tensor, state[name]) for name, tensor in weights.items())


def test_weights_of_another_detector_are_refused(detector_dir: Path) -> None:
    path = detector_dir / "detector_loss.onnx"
    with pytest.raises(ContractError, match="does not hold a detector of scale n, 4 classes"):
        detector_from_onnx(path, Hyperparameters(num_classes=4, scale="n"))


def test_a_changed_weight_is_detected(detector_dir: Path) -> None:
    model, detector = onnx.load(detector_dir / "detector_loss.onnx"), exported_detector(detector_dir)
    check_weights(model, detector)
    detector.state_dict()["model.9.cv1.conv.weight"][3, 1] += 1e-6  # shares its memory
    with pytest.raises(RuntimeError, match=r"weight model\.9\.cv1\.conv\.weight is not in the exported graph"):
        check_weights(model, detector)


def test_a_changed_network_is_detected(detector_dir: Path, tmp_path: Path) -> None:
    model = onnx.load(detector_dir / "detector_loss.onnx")
    node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    attribute = next(attribute for attribute in node.attribute if attribute.name == "epsilon")
    assert attribute.f == np.float32(1e-3)
    attribute.f = 1e-5  # torch's default instead of YOLO's, in one layer of sixty
    onnx.save(model, tmp_path / "changed.onnx")
    differences = verify_network(tmp_path / "changed.onnx", load_contract(detector_dir / "detector_loss.json"))
    assert {d.output for d in differences if not d.passed} == MAPS


def test_an_eps_lost_behind_the_maps_is_detected(detector_dir: Path, tmp_path: Path) -> None:
    model = onnx.load(detector_dir / "detector_loss.onnx")
    constants = [a.t for node in model.graph.node for a in node.attribute if a.name == "value"]
    scalars = [t for t in [*model.graph.initializer, *constants] if t.data_type == TensorProto.FLOAT and not t.dims]
    found = [tensor for tensor in scalars if onnx.numpy_helper.to_array(tensor) == np.float32(1e-9)]
    assert found
    for tensor in found:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros((), np.float32), tensor.name))
    onnx.save(model, tmp_path / "changed.onnx")
    differences = verify_behind_maps(tmp_path / "changed.onnx", load_contract(detector_dir / "detector_loss.json"))
    assert "target_weights" in {d.output for d in differences if not d.passed}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model detector_loss --scale n", "give its state dict (--weights FILE) and scale"),
        ("--model detector_loss --weights {weights}", "give its state dict (--weights FILE) and scale"),
        ("--model detector_loss --weights {weights} --scale z", "scale is 'z'; choose one of n, s, m, l, x"),
        ("--model detector_loss --weights {weights} --scale s --num-classes 3", "wrong shape: model.0.conv.weight"),
        ("--model detector_loss --weights {weights} --scale n", "check its scale, nc and reg_max"),
        ("--model detector_loss --weights nowhere.pt --scale n", "weights is nowhere.pt, which is no file"),
        (
            "--model detector_loss --weights {weights} --scale n --strides 8,16",
            "but the maps of detectors have (8, 16, 32) or",
        ),
        ("--model loss --weights {weights}", "but loss has no detector; leave it out"),
        ("--model assigner --scale n", "scale is n, but assigner has no detector"),
    ],
)
def test_command_line_refuses(
    detector_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    arguments = words.format(weights=detector_dir / "weights.safetensors").split()
    assert cli.main(["onnx", "--out", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []
