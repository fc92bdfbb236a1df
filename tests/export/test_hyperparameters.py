"""The list of hyper-parameters, and what is derived from it."""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
from typing import Any

import pytest

from yolo_assigner.export.contract import KINDS
from yolo_assigner.export.hyperparameters import OPTIONS, Hyperparameters
from yolo_assigner.export.to_onnx import command
from yolo_loss import DetectionLoss, TaskAlignedAssigner
from yolo_loss.assignment.params import AssignerParams

# Other values than the defaults, as they are stored and as arguments of the command line.
VALUES: dict[str, tuple[Any, str]] = {
    "num_classes": (3, "3"),
    "strides": ((4.0, 8.0), "4,8"),
    "reg_max": (8, "8"),
    "topk": (7, "7"),
    "alpha": (1.0, "1"),
    "beta": (4.5, "4.5"),
    "eps": (1e-7, "1e-7"),
    "preset": ("ultralytics-8.4", "ultralytics-8.4"),
    "min_box_side": (12.0, "12"),
    "topk2": (2, "2"),
    "class_loss": ("varifocal", "varifocal"),
    "gains": ((1.0, 2.0, 3.0), "1,2,3"),
    "class_weights": ((1.0, 0.5, 2.0), "1,0.5,2"),
    "extra_inputs": (("class_weights", "ignore_bboxes"), "class_weights,ignore_bboxes"),
    "scale": ("n", "n"),
}


def parse(words: list[str]) -> Hyperparameters:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = parser.parse_args(["--model", "loss", "--out", "folder", *words])
    return Hyperparameters(**{name: getattr(options, name) for name in OPTIONS})


def test_defaults_are_those_of_the_criterion() -> None:
    parameters = inspect.signature(DetectionLoss).parameters
    arguments = Hyperparameters().criterion_arguments()
    # `min_box_side` and `topk2` are among the criterion's `assigner_options`.
    assert arguments.keys() - parameters.keys() == {"min_box_side", "topk2"}
    for name in arguments.keys() & parameters.keys():
        assert arguments[name] == parameters[name].default, name


def test_every_hyperparameter_is_an_option_of_the_command() -> None:
    assert parse([]) == Hyperparameters()
    words = [f"--{name.replace('_', '-')}={word}" for name, (_, word) in VALUES.items()]
    assert VALUES.keys() == OPTIONS.keys()
    assert parse(words) == Hyperparameters(**{name: value for name, (value, _) in VALUES.items()})


@pytest.mark.parametrize("name", OPTIONS)
def test_every_hyperparameter_survives_the_contract(name: str) -> None:
    others: dict[str, Any] = {"num_classes": 3} if name == "class_weights" else {}  # one weight for each class
    changed = Hyperparameters(**{name: VALUES[name][0]}, **others)
    assert changed != Hyperparameters(**others)
    values = json.loads(json.dumps(changed.as_contract()))
    assert values == changed.as_contract()
    assert getattr(Hyperparameters.from_contract(values), name) == VALUES[name][0]


def test_every_hyperparameter_reaches_the_modules() -> None:
    changed = Hyperparameters(**{name: value for name, (value, _) in VALUES.items()})
    params = {name: VALUES[name][0] for name in AssignerParams._fields}
    assigner = TaskAlignedAssigner(**changed.assigner_arguments())
    assert (assigner.num_classes, assigner.params._asdict()) == (3, params)
    criterion = DetectionLoss(**changed.criterion_arguments())
    assert criterion.assigner.params._asdict() == params
    for name in OPTIONS.keys() - params.keys() - {"scale", "extra_inputs"}:  # which shape the graph
        assert getattr(criterion, name) == VALUES[name][0]


def test_contracts_without_a_hyperparameter_have_its_default() -> None:
    values = Hyperparameters(topk=7).as_contract()
    del values["class_loss"]
    assert Hyperparameters.from_contract(values) == Hyperparameters(topk=7)


def test_every_hyperparameter_concerns_known_kinds() -> None:
    assert all(set(option.kinds) <= set(KINDS) for option in OPTIONS.values())


def test_importing_the_list_needs_no_torch() -> None:
    code = "import sys, yolo_assigner.export.to_onnx.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
