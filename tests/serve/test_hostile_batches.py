"""Two hundred hostile batches: one verdict and the same numbers in every implementation and every exported model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.exports import EVERY_INPUT, exported
from tests.hostile_batches import NUM_CLASSES, SPOILERS, STRIDES, HostileBatch, hostile_batch
from yolo_assigner.export.contract import Contract, find_contracts
from yolo_assigner.export.verification.runnable import Runnable
from yolo_assigner.serve.detection.collate import pad_ground_truth
from yolo_assigner.serve.detection.validate import check_inputs
from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.wire.dtypes import Array
from yolo_loss import DetectionLoss

BATCHES, AT_ONCE = 200, 20
# Of single precision, beside the largest number of the same tensor: beside float64 the weights are up to 1.6e-6 off in
# torch, and 9.0e-6 in a graph, since u^6 multiplies the rounding of a distance.
TOLERANCE = 2e-5
SMALLEST = 1e-6
Outputs = dict[str, Array]
Model = tuple[Contract, Runnable]


@pytest.fixture(scope="module")
def models(artifacts_dir: Path, dense_dir: Path) -> list[Model]:
    """``loss`` and ``loss_grad``, sparse and dense, and one of each with the other class loss and every input."""
    others = [exported("loss", "sparse", **EVERY_INPUT), exported("loss_grad", "dense", **EVERY_INPUT)]
    found = [pair for folder in (artifacts_dir, dense_dir, *others) for pair in find_contracts(folder)]
    return [(contract, Runnable(path, contract.inputs)) for path, contract in found if contract.maps]


def by_torch(hostile: HostileBatch, formulation: str, class_loss: str = "bce") -> Outputs:
    leaves = [feat.clone().requires_grad_() for feat in hostile.feats]
    criterion = DetectionLoss(NUM_CLASSES, STRIDES, implementation=formulation, class_loss=class_loss)
    result = criterion.evaluate(leaves, hostile.batch)
    gradients = torch.autograd.grad(result.loss, leaves)
    named: dict[str, Tensor] = {
        **result.assignment._asdict(),
        "loss": result.loss,
        "loss_items": result.loss_items,
        "image_sums": result.image_sums,
        **{f"grad_feat_{level}": gradient for level, gradient in enumerate(gradients)},
    }
    return {name: tensor.detach().numpy() for name, tensor in named.items()}


def request_of(hostile: HostileBatch, contract: Contract) -> Outputs:
    """What the service makes of it, or refuses."""
    feats = {f"feat_{level}": feat.numpy() for level, feat in enumerate(hostile.feats)}
    images, _, height, width = hostile.feats[0].shape
    batch_idx, cls, bboxes = (hostile.batch[name].numpy() for name in ("batch_idx", "cls", "bboxes"))
    feats |= without_effect(contract, images)
    none = {"gt_labels": (0, 1), "gt_bboxes": (0, 4), "mask_gt": (0, 1)}
    types = {"gt_labels": np.int64, "gt_bboxes": np.float32, "mask_gt": np.bool_}
    # Maps are judged before boxes, as everywhere.
    check_inputs(contract, feats | {name: np.zeros((images, *none[name]), types[name]) for name in none})
    truth = pad_ground_truth(batch_idx, cls, bboxes, images, (8 * height, 8 * width), NUM_CLASSES)
    return check_inputs(contract, feats | truth._asdict())


def without_effect(contract: Contract, images: int) -> Outputs:
    """Class weights of 1 and no region to ignore, where a model takes them."""
    inputs: Outputs = {
        "class_weights": np.ones((images, NUM_CLASSES), np.float32),
        "ignore_bboxes": np.zeros((images, 0, 4), np.float32),
        "mask_ignore": np.zeros((images, 0, 1), np.bool_),
    }
    return {spec.name: inputs[spec.name] for spec in contract.inputs if spec.name in inputs}


def assert_same(got: Outputs, want: Outputs, label: str) -> None:
    """Decisions equal, numbers that are not finite in the same places, the others within the tolerance."""
    for name, array in got.items():
        other = want[name]
        assert array.shape == other.shape, (label, name)
        if array.dtype.kind != "f":
            assert np.array_equal(array, other), (label, name, np.count_nonzero(array != other))
            continue
        for is_such in (np.isnan, np.isposinf, np.isneginf):
            assert np.array_equal(is_such(array), is_such(other)), (label, name, is_such.__name__)
        finite = np.isfinite(other)
        scale = max(float(np.abs(other[finite]).max(initial=0.0)), SMALLEST)
        with np.errstate(over="ignore"):
            difference = np.abs(array[finite].astype(np.float64) - other[finite]).max(initial=0.0) / scale
        assert difference <= TOLERANCE, (label, name, difference)


class Judged(NamedTuple):
    """What each implementation and each model makes of a batch.

    Attributes:
        said: Why each refuses it; empty where it does not.
        results: Results of each implementation in torch that takes it, with BCE.
        requests: Inputs of each model that takes it.
    """

    said: list[str]
    results: dict[str, Outputs]
    requests: list[Outputs]


def judge(hostile: HostileBatch, models: list[Model]) -> Judged:
    judged = Judged([], {}, [])
    for formulation in ("auto", "sparse", "dense"):
        try:
            judged.results[formulation] = by_torch(hostile, formulation)
            judged.said.append("")
        except ValueError as error:
            judged.said.append(str(error))
    for contract, _ in models:
        try:
            judged.requests.append(request_of(hostile, contract))
            judged.said.append("")
        except (BadRequestError, ValueError) as error:
            judged.said.append(str(error))
    return judged


@pytest.mark.parametrize("begin", range(0, BATCHES, AT_ONCE))
def test_same_verdict_and_numbers(models: list[Model], begin: int) -> None:
    assert {contract.formulation for contract, _ in models} == {"dense", "sparse"}
    for seed in range(begin, begin + AT_ONCE):
        hostile = hostile_batch(seed)
        label = f"batch {seed}, {hostile.kind}"
        judged = judge(hostile, models)
        said = [re.sub(r"feats\[(\d)\]", r"feat_\1", text) for text in judged.said]
        if any(said):
            assert_one_verdict(said, label)
            continue
        # What `auto` chooses does not depend on the class loss.
        varifocal = {formulation: by_torch(hostile, formulation, "varifocal") for formulation in ("sparse", "dense")}
        results = {"bce": judged.results, "varifocal": varifocal}
        for class_loss, found in results.items():
            want = found["sparse"]
            for formulation, got in found.items():
                assert_same(got, want, f"{label}, {formulation}, {class_loss}")
                for name in ("fg_mask", "target_gt_idx", "target_weights"):
                    assert np.array_equal(got[name], want[name]), label
        for (contract, model), request in zip(models, judged.requests, strict=True):
            want = results[contract.hyperparameters["class_loss"]]["sparse"]
            inputs: Any = [torch.from_numpy(array) for array in request.values()]
            names = [spec.name for spec in contract.outputs if spec.name in want]
            assert_same(model(inputs, names), want, f"{label}, {contract.name} {contract.formulation}")


def assert_one_verdict(said: list[str], label: str) -> None:
    """A map that is missing is an input that is missing to a model that names them."""
    if "there are 3 strides" in said[0]:
        assert len({*said[:3]}) == 1, label
        assert all("feat_2" in text for text in said[3:]), (label, said)
    else:
        assert len({*said}) == 1, (label, {*said})


def test_every_kind_is_there_and_most_are_taken() -> None:
    kinds = [hostile_batch(seed).kind for seed in range(BATCHES)]
    assert {*kinds} == {*SPOILERS}
    taken = 0
    for seed in range(BATCHES):
        hostile = hostile_batch(seed)
        try:
            DetectionLoss(NUM_CLASSES, STRIDES)(hostile.feats, hostile.batch)
            taken += 1
        except ValueError:
            assert hostile.kind.startswith("wrong")
    assert BATCHES * 0.8 <= taken <= BATCHES * 0.9
