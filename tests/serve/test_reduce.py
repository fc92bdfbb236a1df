"""The loss of one batch over several workers, against one large batch in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.serve.conftest import Live, Reply
from yolo_assigner.export.samples import Case, pyramid, sample_loss_inputs
from yolo_assigner.serve.detection.results import reduce_sums
from yolo_loss import DetectionLoss, Gains, GroundTruth
from yolo_loss.predictions import join_predictions

STRIDES = (8.0, 16.0, 32.0)
CRITERION = DetectionLoss(num_classes=3)


def large_batch(images: int, slots: int = 5) -> tuple[list[Tensor], GroundTruth]:
    feats, *truth = sample_loss_inputs(Case(images, slots, pyramid(64, 96, STRIDES), 3), STRIDES, 16, seed=images)
    return [feat.double() for feat in feats], GroundTruth(*truth)


def share(feats: list[Tensor], truth: GroundTruth, part: slice) -> tuple[list[Tensor], Any]:
    """One worker's maps as leaves, and its own loss."""
    leaves = [feat[part].clone().requires_grad_() for feat in feats]
    own = GroundTruth(*(field[part] for field in truth))
    return leaves, CRITERION.from_padded(join_predictions(leaves, STRIDES, 3, 16), own)


@pytest.mark.parametrize("cuts", [[4], [1, 3], [1, 1, 2], [2, 0, 2]], ids=str)
def test_loss_and_scaled_gradients_are_those_of_one_batch(cuts: list[int]) -> None:
    """The recipe: every worker multiplies the gradients of its own loss by its scale."""
    feats, truth = large_batch(4)
    whole, expected = share(feats, truth, slice(None))
    wanted = torch.autograd.grad(expected.loss, whole)
    ends = np.cumsum(cuts)
    workers = [share(feats, truth, slice(end - size, end)) for end, size in zip(ends, cuts, strict=True)]
    reduced = reduce_sums([result.image_sums.detach().numpy() for _, result in workers], Gains())
    assert reduced.num_images == 4
    assert reduced.loss == pytest.approx(float(expected.loss.detach()), rel=1e-12)
    np.testing.assert_allclose(reduced.loss_items, expected.loss_items, rtol=1e-12)
    own = [torch.autograd.grad(result.loss, leaves) for leaves, result in workers]
    for level, want in enumerate(wanted):
        scaled = [gradients[level] * scale for gradients, scale in zip(own, reduced.gradient_scales, strict=True)]
        torch.testing.assert_close(torch.cat(scaled), want, rtol=1e-10, atol=1e-13)


def test_without_target_scores_the_divisor_is_one() -> None:
    # Two images with class sums 3 and 5 and no target: (3 + 5) / 1 * 0.5 = 4, times 2 images.
    reduced = reduce_sums([np.array([[0, 3, 0, 0]]), np.array([[0, 5, 0, 0]])], Gains())
    assert reduced.loss == 8.0
    # Own loss of the first: 3 * 0.5 * 1 image; in the large batch it counts for 3 * 0.5 * 2.
    assert reduced.gradient_scales.tolist() == [2.0, 2.0]


def test_route_adds_up_what_the_loss_route_gives(live: Live) -> None:
    parts = [live_loss(live, images) for images in (2, 1)]
    reply = send(live, {"workers": [part["image_sums"] for part in parts]})
    assert reply.status == 200, reply.body
    rows = [np.array([list(image.values()) for image in part["image_sums"]]) for part in parts]
    expected = reduce_sums(rows, Gains())
    assert reply.json["loss"] == pytest.approx(expected.loss)
    assert reply.json["gradient_scales"] == pytest.approx(expected.gradient_scales.tolist())
    assert (reply.json["num_images"], reply.json["model"]) == (3, "loss")
    again = send(live, {"workers": [row.tolist() for row in rows], "model": "loss_grad"})
    assert again.json["loss"] == reply.json["loss"]
    # One worker alone: its own loss, and gradients as they are.
    alone = send(live, {"workers": [rows[0].tolist()]}).json
    assert alone["loss"] == pytest.approx(parts[0]["loss"], rel=1e-6)
    assert alone["gradient_scales"] == pytest.approx([1.0])


def live_loss(live: Live, images: int) -> Any:
    generator = np.random.default_rng(images)
    feats = [generator.standard_normal((images, 67, 64 // stride, 64 // stride)).tolist() for stride in (8, 16, 32)]
    batch = {"batch_idx": [0], "cls": [1], "bboxes": [[0.5, 0.5, 0.6, 0.7]]}
    return live.send("POST", "/v1/loss", {"feats": feats, "batch": batch}).json


def send(live: Live, body: Any) -> Reply:
    return live.send("POST", "/v1/reduce", body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"workers": []}, "workers"),
        ({"workers": [[]]}, "workers has no image"),
        ({"workers": [[[1, 2, 3]]]}, "workers"),
        ({"workers": [[[1, 2, 3, -1]]]}, "greater than or equal to 0"),
        ({"workers": [[{"box": 1, "cls": 2, "dfl": 3, "target_scores": -1}]]}, "greater than or equal to 0"),
        ({"workers": [[[1, 2, "3", 4]]]}, "workers"),
        ({"workers": [[[1, 2, 3, 4]]], "model": "assigner"}, "has no gains"),
        ({"workers": [[[1, 2, 3, 4]]], "gains": [1]}, "gains"),
        ({}, "workers"),
    ],
    ids=str,
)
def test_refusals(live: Live, body: Any, words: str) -> None:
    reply = send(live, body)
    assert reply.status == 400
    assert words in reply.error


def test_unknown_model(live: Live) -> None:
    assert send(live, {"workers": [[[1, 2, 3, 4]]], "model": "nobody"}).status == 404


def test_example_of_the_page(live: Live) -> None:
    page = live.send("GET", "/openapi.json").json
    content = page["paths"]["/v1/reduce"]["post"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        assert send(live, example["value"]).status == 200
