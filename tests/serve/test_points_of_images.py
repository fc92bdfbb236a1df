"""Anchor points of all images and of each on the wire: forms that are taken, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.serve.conftest import Live, assigner_inputs, binary_rows, graph_inputs
from tests.serve.toy_contract import CONTRACT
from yolo_assigner.export.contract import TensorSpec
from yolo_assigner.serve.detection.validate import check_inputs
from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.inference.memory_estimate import estimate_memory, memory_bound
from yolo_assigner.serve.inference.merging import Request, batch_key, merge
from yolo_assigner.serve.wire.dtypes import Array

OF_SETS = dataclasses.replace(
    CONTRACT,
    formulation="sparse",
    inputs=tuple(
        TensorSpec("anc_points", "float32", ("S", "A", 2)) if spec.name == "anc_points" else spec
        for spec in CONTRACT.inputs
    ),
)


def test_every_form_gives_the_same(live: Live) -> None:
    """(A, 2) of earlier clients, (1, A, 2), and the same points for each image."""
    inputs = assigner_inputs()
    points = inputs["anc_points"]
    bodies = []
    for form in (points, points[None], np.stack([points] * 2)):
        rows, blob = binary_rows(inputs | {"anc_points": form})
        reply = live.infer("assigner", {"inputs": rows, "outputs": [{"name": "target_weights"}]}, blob)
        assert reply.status == 200, reply.error
        bodies.append(reply.json["outputs"][0]["data"])
    assert bodies[0] == bodies[1] == bodies[2]
    assert any(bodies[0])


@pytest.mark.parametrize(("sets", "images"), [(2, 3), (3, 1), (0, 2)])
def test_points_of_another_number_of_images_are_refused(sets: int, images: int) -> None:
    inputs = assigner_inputs(images)
    inputs["anc_points"] = np.stack([inputs["anc_points"]] * 3)[:sets]
    message = rf"'anc_points' has shape \[{sets}, 84, 2\], points of {sets} images, but there are {images}; send"
    with pytest.raises(BadRequestError, match=message):
        check_inputs(OF_SETS, inputs)


def test_points_get_the_axes_of_the_model() -> None:
    """Those of all images lose or gain an axis; those of each need a model that takes them."""
    inputs = assigner_inputs()
    points = inputs["anc_points"]
    for form in (points, points[None]):
        np.testing.assert_array_equal(check_inputs(CONTRACT, inputs | {"anc_points": form})["anc_points"], points)
        np.testing.assert_array_equal(check_inputs(OF_SETS, inputs | {"anc_points": form})["anc_points"], points[None])
    own = np.stack((points, points + 1))
    np.testing.assert_array_equal(check_inputs(OF_SETS, inputs | {"anc_points": own})["anc_points"], own)
    with pytest.raises(BadRequestError, match=r"it needs 2 axes, \[A, 2\]"):
        check_inputs(CONTRACT, inputs | {"anc_points": own})
    own[1, 7, 0] = np.nan
    with pytest.raises(BadRequestError, match=r"anc_points\[1, 7\] is \[nan"):
        check_inputs(OF_SETS, inputs | {"anc_points": own})


def request(images: int, seed: int, *, own_points: bool = False) -> Request:
    """For one output."""
    return Request(graph_inputs(images, seed=seed, own_points=own_points), ("target_weights",))


def test_requests_of_either_form_share_a_call() -> None:
    """One set of points where all have the same, else one for each image; models of one set need the same."""
    one, other, own = request(2, 0), request(1, 1), request(3, 2, own_points=True)
    assert batch_key(one) == batch_key(other) == batch_key(own)
    same = other._replace(inputs={**other.inputs, "anc_points": one.inputs["anc_points"]})
    assert merge([one, same])["anc_points"].shape == (1, 84, 2)
    merged = merge([one, other, own])["anc_points"]
    for image, source in enumerate([one, one, other]):
        np.testing.assert_array_equal(merged[image], source.inputs["anc_points"][0])
    np.testing.assert_array_equal(merged[3:], own.inputs["anc_points"])
    earlier = [Request(assigner_inputs(seed=seed), ("target_weights",)) for seed in (0, 0, 1)]
    assert batch_key(earlier[0]) == batch_key(earlier[1]) != batch_key(earlier[2])


def test_pairs_of_each_image_are_counted_with_its_own_points() -> None:
    """The second image's points lie outside its boxes."""
    inputs = graph_inputs(2)
    inputs["gt_bboxes"][:] = (0, 0, 64, 64)
    inputs["mask_gt"][:] = True
    inputs["anc_points"] = np.stack((inputs["anc_points"][0], inputs["anc_points"][0] + 1000))
    estimate = estimate_memory(OF_SETS, inputs)
    assert (estimate.anchors, estimate.pairs) == (84, 3 * 84)
    shared: dict[str, Array] = inputs | {"anc_points": inputs["anc_points"][:1]}
    assert estimate_memory(OF_SETS, shared).pairs == 2 * 3 * 84
    assert estimate.nbytes <= memory_bound(OF_SETS, inputs)
