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
from yolo_assigner.export.hyperparameters import END_TO_END_OPTIONS, OPTIONS, Hyperparameters
from yolo_assigner.export.to_onnx import command
from yolo_assigner.export.to_onnx.graphs import EndToEndLossGraph, build_graph
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
    "end_to_end": (True, ""),
    "one2many_share": (0.25, "0.25"),
    "topk_one2one": (5, "5"),
    "topk2_one2one": (2, "2"),
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
    words = [f"--{name.replace('_', '-')}{'=' if word else ''}{word}" for name, (_, word) in VALUES.items()]
    assert VALUES.keys() == OPTIONS.keys()
    assert parse(words) == Hyperparameters(**{name: value for name, (value, _) in VALUES.items()})


@pytest.mark.parametrize("name", OPTIONS)
def test_every_hyperparameter_survives_the_contract(name: str) -> None:
    others: dict[str, Any] = {"num_classes": 3} if name == "class_weights" else {}  # one weight for each class
    if name in END_TO_END_OPTIONS:
        others = {"end_to_end": True}
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
    # The others shape the graph.
    for name in OPTIONS.keys() - params.keys() - {"scale", "extra_inputs", "end_to_end", *END_TO_END_OPTIONS}:
        assert getattr(criterion, name) == VALUES[name][0]
    graph = build_graph("detector_loss", changed, "sparse")
    assert isinstance(graph, EndToEndLossGraph)
    assert graph.share == 0.25
    assert graph.one2many.criterion.assigner.params._asdict() == params
    assert graph.one2one.criterion.assigner.params._asdict() == params | {"topk": 5, "topk2": 2}


def test_two_branches_have_the_values_of_their_loss() -> None:
    values = Hyperparameters(end_to_end=True).effective()
    assert {name: values[name] for name in END_TO_END_OPTIONS} == {
        "one2many_share": 0.8,
        "topk_one2one": 7,
        "topk2_one2one": 1,
    }
    # Contracts of other models say nothing of branches.
    assert not {"end_to_end", *END_TO_END_OPTIONS} & Hyperparameters().as_contract().keys()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"one2many_share": 0.5}, "one2many_share is 0.5, but the head has one branch; leave it out or set end_to_end"),
        ({"topk_one2one": 7.0}, "topk_one2one is 7, but the head has one branch"),
        ({"end_to_end": True, "one2many_share": 1.5}, "one2many_share is 1.5, expected a number from 0 to 1"),
        ({"end_to_end": True, "topk2_one2one": 0}, "topk2_one2one is 0, expected a whole number, at least 1"),
        ({"end_to_end": "yes"}, "end_to_end is 'yes', expected true or false"),
    ],
)
def test_branches_that_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Hyperparameters(**options)


def test_contracts_without_a_hyperparameter_have_its_default() -> None:
    values = Hyperparameters(topk=7).as_contract()
    del values["class_loss"]
    assert Hyperparameters.from_contract(values) == Hyperparameters(topk=7)


def test_every_hyperparameter_concerns_known_kinds() -> None:
    assert all(set(option.kinds) <= set(KINDS) for option in OPTIONS.values())


def test_importing_the_list_needs_no_torch() -> None:
    code = "import sys, yolo_assigner.export.to_onnx.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
