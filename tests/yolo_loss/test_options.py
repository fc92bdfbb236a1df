"""Hyper-parameters: accepted where the meaning is plain, else one clear error, the same wherever they are given."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from yolo_assigner.export.cli import main
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.samples import Case, pyramid, sample_assigner_inputs
from yolo_loss import AssignmentResult, DetectionLoss, Gains, TaskAlignedAssigner, v8DetectionLoss
from yolo_loss.assignment.params import AssignerParams

STRIDES = (8.0, 16.0, 32.0)
INPUTS = sample_assigner_inputs(Case(2, 8, pyramid(64, 96, STRIDES), 80), STRIDES, seed=0)
INFINITY, NAN = float("inf"), float("nan")
NUMBER = "expected a finite number, 0 or more"
COUNT = "expected a whole number, at least 1"
THREE = "expected three numbers, box, cls, dfl, or a dict of these"


def refusal(make: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ValueError, match=r".+") as caught:
        make(*arguments, **options)
    return str(caught.value)


def same(one: AssignmentResult, other: AssignmentResult) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


OF_THE_ASSIGNER = [
    ("topk", 10.5, f"topk is 10.5, {COUNT}"),
    ("topk", True, f"topk is True, {COUNT}"),
    ("topk", NAN, f"topk is nan, {COUNT}"),
    ("topk", "10", f"topk is '10', {COUNT}"),
    ("topk", None, f"topk is None, {COUNT}"),
    ("topk2", 0, f"topk2 is 0, {COUNT}"),
    ("num_classes", -1, f"num_classes is -1, {COUNT}"),
    ("num_classes", INFINITY, f"num_classes is inf, {COUNT}"),
    ("num_classes", [80], f"num_classes is [80], {COUNT}"),
    ("alpha", NAN, f"alpha is nan, {NUMBER}"),
    ("alpha", -1.0, f"alpha is -1.0, {NUMBER}"),
    ("beta", INFINITY, f"beta is inf, {NUMBER}"),
    ("beta", False, f"beta is False, {NUMBER}"),
    ("beta", 10**400, f"beta is {10**400}, {NUMBER}"),
    ("eps", -1e-9, f"eps is -1e-09, {NUMBER}"),
    ("min_box_side", NAN, f"min_box_side is nan, {NUMBER}"),
]
OF_THE_LOSS = [
    ("reg_max", 0, f"reg_max is 0, {COUNT}"),
    ("strides", (8, NAN, 32), "strides[1] is nan, expected a finite number, above 0"),
    ("strides", torch.tensor([8.0, 0.0]), "strides[1] is 0.0, expected a finite number, above 0"),
    ("strides", [8, True], "strides[1] is True, expected a finite number, above 0"),
    ("strides", (), "strides is (), expected a list of pixels per cell, one for each level, as 8, 16, 32"),
    ("strides", 8, "strides is 8, expected a list of pixels per cell, one for each level, as 8, 16, 32"),
    ("strides", "8,16", "strides is '8,16', expected a list of pixels per cell, one for each level, as 8, 16, 32"),
    ("gains", (1, 2), f"gains is (1, 2), {THREE}"),
    ("gains", 7.5, f"gains is 7.5, {THREE}"),
    ("gains", (1, 2, NAN), f"gain dfl is nan, {NUMBER}"),
    ("gains", {"box": 1, "cls": -2, "dfl": 3}, f"gain cls is -2, {NUMBER}"),
    ("gains", {"box": 1, "cls": 2}, "gains has box, cls, expected box, cls, dfl"),
    ("gains", {"box": 1, "cls": 2, "dfl": 3, "pose": 4}, "gains has box, cls, dfl, pose, expected box, cls, dfl"),
    ("class_loss", "mse", "class_loss is 'mse', expected one of bce, varifocal"),
    ("preset", "yolo99", "preset is 'yolo99', expected one of yolov8, ultralytics-8.4"),
]


@pytest.mark.parametrize(("name", "value", "text"), OF_THE_ASSIGNER + OF_THE_LOSS)
def test_one_text_at_construction(name: str, value: Any, text: str) -> None:
    makers: list[Any] = [DetectionLoss, Hyperparameters]
    if (name, value, text) in OF_THE_ASSIGNER:
        makers.append(TaskAlignedAssigner)
    assert {refusal(make, **{name: value}) for make in makers} == {text}


@pytest.mark.parametrize(
    ("option", "text"), [("--alpha", f"alpha is nan, {NUMBER}"), ("--beta", f"beta is nan, {NUMBER}")]
)
def test_the_command_line_says_the_same(
    option: str, text: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["onnx", "--model", "assigner", "--out", str(tmp_path), option, "nan"]) == 2
    assert capsys.readouterr().err == f"error: {text}\n"


def test_plain_meanings_are_accepted() -> None:
    for ten in (10.0, np.int64(10), torch.tensor(10), np.array([10.0])):
        assigner = TaskAlignedAssigner(ten)  # type: ignore[arg-type]
        assert (assigner.topk, type(assigner.topk)) == (10, int)
    for strides in ([8, 16], torch.tensor([8.0, 16.0]), np.array([8, 16])):
        assert DetectionLoss(strides=strides).strides == (8.0, 16.0)
        assert Hyperparameters(strides=strides).strides == (8.0, 16.0)  # type: ignore[arg-type]
    for gains in ({"dfl": 3, "box": 1, "cls": 2}, [1, 2, 3], torch.tensor([1, 2, 3]), np.array([1.0, 2.0, 3.0])):
        assert DetectionLoss(gains=gains).gains == Gains(1.0, 2.0, 3.0)
        assert Hyperparameters(gains=gains).gains == (1.0, 2.0, 3.0)  # type: ignore[arg-type]
    assert Hyperparameters(topk=10.0, alpha=1).as_contract() == Hyperparameters(topk=10, alpha=1.0).as_contract()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "options", "want"),
    [
        (([8, 16, 32],), {}, (16.0, 1e-9, None)),
        ((torch.tensor([4.0, 8.0]),), {"eps": 1e-6}, (8.0, 1e-6, None)),
        (((32,), 1e-8), {"topk2": 1}, (32.0, 1e-8, 1)),
        (([8, 16, 32], 1e-8, 2), {}, (16.0, 1e-8, 2)),
        ((1e-8,), {"stride": [8, 16]}, (16.0, 1e-8, None)),
        ((), {"eps": 1e-8}, (None, 1e-8, None)),
    ],
)
def test_the_positional_order_of_release_8_4(
    arguments: tuple[Any, ...], options: dict[str, Any], want: tuple[Any, ...]
) -> None:
    params = TaskAlignedAssigner(10, 80, 0.5, 6.0, *arguments, **options).params
    assert (params.topk, params.alpha, params.beta) == (10, 0.5, 6.0)
    assert (params.min_box_side, params.eps, params.topk2) == want


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (([8], 1e-9), {"eps": 1e-9}, "eps is given twice, by its place and by its name; leave one out"),
        (([8],), {"stride": [8]}, "stride is given twice, by its place and by its name; leave one out"),
        ((1e-9,), {"eps": 1e-9}, "eps is given twice, by its place and by its name; leave one out"),
        ((1e-9, 1), {}, "(1,) is given behind eps; name what is meant, as topk2=1"),
        (([8, -16],), {}, "stride[1] is -16, expected a finite number, above 0"),
    ],
)
def test_what_has_two_meanings(arguments: tuple[Any, ...], options: dict[str, Any], text: str) -> None:
    assert refusal(TaskAlignedAssigner, 10, 80, 0.5, 6.0, *arguments, **options) == text


def test_attributes_are_read_at_each_call() -> None:
    assigner = TaskAlignedAssigner(num_classes=80)
    before = assigner(*INPUTS)
    for name, value in {"topk": 2, "topk2": 1, "alpha": 0.5, "beta": 3, "eps": 1.0, "stride": [8, 64]}.items():
        last = assigner(*INPUTS)
        setattr(assigner, name, value)
        if name != "topk2":  # which may keep what topk let through
            assert not same(assigner(*INPUTS), last), name
    fresh = TaskAlignedAssigner(2, 80, 0.5, 3.0, 1.0, topk2=1, min_box_side=64.0)
    assert assigner.params == fresh.params
    assert same(assigner(*INPUTS), fresh(*INPUTS))
    assert not same(assigner(*INPUTS), before)
    assert "topk=2, alpha=0.5, beta=3, eps=1.0, min_box_side=None, topk2=1, stride=[8, 64]" in repr(assigner)


def test_what_is_set_later_is_checked_at_the_call() -> None:
    for name, value, text in OF_THE_ASSIGNER:
        assigner = TaskAlignedAssigner()
        setattr(assigner, name, value)
        if value is not None:
            assert refusal(assigner, *INPUTS) == text
        assert name in repr(assigner)


def test_a_preset_takes_its_side_from_the_strides() -> None:
    """The second stride, or the only one (spec, section 5)."""
    for strides, side in (((8, 16, 32), 16.0), ((4, 8, 16, 32), 8.0), ((16, 32), 32.0), ((8,), 8.0)):
        assert DetectionLoss(strides=strides, preset="ultralytics-8.4").assigner.params.min_box_side == side
        assert Hyperparameters(strides=strides, preset="ultralytics-8.4").effective()["min_box_side"] == side
        assert DetectionLoss(strides=strides).assigner.params.min_box_side is None


def test_copies_and_pickles() -> None:
    assigner = TaskAlignedAssigner(10, 80, 0.5, 6.0, torch.tensor([8.0, 16.0]))
    for other in (copy.deepcopy(assigner), pickle.loads(pickle.dumps(assigner))):  # noqa: S301  (our own bytes)
        assert other.params == assigner.params
        assert same(other(*INPUTS), assigner(*INPUTS))


def test_the_numbers_of_a_detector() -> None:
    head = SimpleNamespace(nc=3, reg_max=16, stride=torch.tensor([8.0, NAN]))
    model = SimpleNamespace(model=[head], args={"box": 1.0, "cls": None, "dfl": 3.0, "lr0": 0.01})
    text = "SimpleNamespace.stride[1] is nan, expected a finite number, above 0; it is set when the model is built"
    assert refusal(v8DetectionLoss, model) == text
    head.stride = torch.tensor([8.0, 16.0])
    assert refusal(v8DetectionLoss, model) == f"gain cls is None, {NUMBER}"


def test_the_checks_load_no_torch() -> None:
    code = "import sys, yolo_loss.checks, yolo_loss.option_checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["implementation", "class_loss"])
def test_words_set_later_are_checked_at_the_call(name: str) -> None:
    criterion = DetectionLoss(80, STRIDES)
    setattr(criterion.assigner if name == "implementation" else criterion, name, "other")
    maps = [torch.zeros(1, 144, *grid) for grid in ((4, 4), (2, 2), (1, 1))]
    batch = {"batch_idx": torch.zeros(1), "cls": torch.zeros(1), "bboxes": torch.full((1, 4), 0.5)}
    assert refusal(criterion, maps, batch).startswith(f"{name} is 'other', expected one of ")


def test_counts_beyond_all_that_can_be_counted() -> None:
    assert refusal(TaskAlignedAssigner, 10**30) == f"topk is {10**30}, expected at most {2**31 - 1}"


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY, 1e30])
def test_points_that_lie_nowhere(value: float) -> None:
    scores, boxes, points, *truth = INPUTS
    points = points.clone()
    points[3, 1] = value
    text = refusal(TaskAlignedAssigner(num_classes=80), scores, boxes, points, *truth)
    assert text.startswith("anc_points[3] is [")
    assert "give finite pixels" in text


@pytest.mark.parametrize("make", [TaskAlignedAssigner, lambda **options: DetectionLoss(**options).assigner])
def test_the_old_name_of_implementation_works_and_warns(make: Any) -> None:
    with pytest.warns(FutureWarning, match="formulation is now called implementation") as caught:
        assigner = make(formulation="dense")
    assert (len(caught), assigner.implementation) == (1, "dense")
    with pytest.warns(FutureWarning, match="implementation"):
        assert assigner.formulation == "dense"
    with pytest.warns(FutureWarning, match="implementation"):
        assigner.formulation = "sparse"
    assert assigner.implementation == "sparse"
    with (
        pytest.warns(FutureWarning, match="implementation"),
        pytest.raises(ValueError, match="implementation is 'sparse' and formulation 'dense'; leave one out"),
    ):
        make(implementation="sparse", formulation="dense")


def test_every_hyper_parameter_is_an_option_and_an_attribute() -> None:
    values = {"topk": 5, "alpha": 2.0, "beta": 3.0, "eps": 1e-6, "min_box_side": 4.0, "topk2": 2}
    assigner = TaskAlignedAssigner(**values)  # type: ignore[arg-type]
    assert assigner.params == AssignerParams(**values)  # type: ignore[arg-type]
    for name, default in zip(AssignerParams._fields, AssignerParams(), strict=True):
        setattr(assigner, name, default)
    assert assigner.params == AssignerParams()
    with pytest.raises(TypeError, match="gamma"):
        TaskAlignedAssigner(gamma=1.0)
