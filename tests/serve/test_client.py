"""The Python client, with a live server, against the torch modules."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.serve.conftest import Live, assigner_inputs, loss_inputs
from yolo_assigner.serve.client import AssignerClient, ServerError
from yolo_assigner.serve.detection.grid import anchor_points
from yolo_assigner.serve.detection.results import AssignmentResult, LossResult
from yolo_loss import DetectionLoss, TaskAlignedAssigner

BATCH: dict[str, Any] = {
    "batch_idx": np.array([1, 0, 1]),
    "cls": np.array([[2.0], [0.0], [1.0]]),
    "bboxes": np.array([[0.5, 0.5, 0.5, 0.5], [0.3, 0.3, 0.4, 0.4], [0.6, 0.5, 0.7, 0.9]], np.float32),
}


def assert_close(actual: Any, expected: Any) -> None:
    """Equal but for the last digits, which differ between runtimes."""
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def maps() -> list[Any]:
    arrays = loss_inputs()
    return [arrays[f"feat_{level}"] for level in range(3)]


def in_torch(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_loss_is_that_of_the_module(live: Live, convert: Callable[[Any], Any]) -> None:
    feats = maps()
    with AssignerClient(f"http://{live.url}/") as client:
        batch = {name: convert(array) for name, array in BATCH.items()}
        result = client.loss([convert(feat) for feat in feats], batch, outputs=["fg_mask", "target_scores"])
    module = DetectionLoss(num_classes=3)
    expected = module.evaluate([torch.from_numpy(feat) for feat in feats], in_torch(BATCH))
    assert_close(result.loss, expected.loss)
    assert_close(result.loss_items, expected.loss_items)
    assert_close(result.image_sums, expected.image_sums)
    assert result.fg_mask is not None
    assert result.target_scores is not None
    np.testing.assert_array_equal(result.fg_mask, expected.assignment.fg_mask)
    assert_close(result.target_scores.sum(axis=2), expected.assignment.target_weights)
    assert result.fg_mask.any()
    assert result.target_labels is None


@pytest.mark.parametrize("slots", [3, 0])
def test_assignment_is_that_of_the_module(live: Live, slots: int) -> None:
    """With the five outputs in the module's order; the dense scores are made here and must be the same."""
    inputs = assigner_inputs(slots=slots)
    inputs["anc_points"] = anchor_points((64, 64), [8, 16, 32])
    if slots:
        inputs["mask_gt"][0, 1] = False
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    with AssignerClient(live.url) as client:
        from_numpy, from_torch = client.assign(*inputs.values()), client.assign(*tensors)
    expected = TaskAlignedAssigner(topk=10, num_classes=5, alpha=0.5, beta=6.0)(*tensors)
    assert AssignmentResult._fields == type(expected)._fields
    for name, ours, again, theirs in zip(from_numpy._fields, from_numpy, from_torch, expected, strict=True):
        np.testing.assert_array_equal(ours, again)
        assert ours.dtype == theirs.numpy().dtype
        if ours.dtype == np.float32:
            assert_close(ours, theirs)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert from_numpy.fg_mask.any() == bool(slots)


@pytest.mark.parametrize("slots", [3, 0])
def test_rebuilt_targets_are_those_of_the_server(live: Live, slots: int) -> None:
    """Three outputs are sent; the client rebuilds the others, equal to the bit."""
    inputs = assigner_inputs(slots=slots)
    inputs["mask_gt"][:, :1] = False
    inputs["gt_labels"][:, :1] = -1  # as some data loaders pad
    with AssignerClient(live.url) as client:
        ours = client.assign(*inputs.values())._asdict()
        theirs = client.infer("assigner", inputs, list(ours))
    for name, array in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_half_precision_upload(live: Live) -> None:
    """Exactly the loss of the rounded maps: they are widened on the other side."""
    feats = maps()
    rounded = [feat.astype(np.float16).astype(np.float32) for feat in feats]
    with AssignerClient(live.url) as full, AssignerClient(live.url, half=True) as half:
        np.testing.assert_array_equal(half.loss(feats, BATCH).loss, full.loss(rounded, BATCH).loss)
        scores, *others = assigner_inputs().values()
        one = half.assign(scores, *others)
        for ours, theirs in zip(one, full.assign(scores.astype(np.float16), *others), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_tensors_of_training(live: Live) -> None:
    """With gradients, in bfloat16, not contiguous, labels as floats: as they come out of a training step."""
    feats = [torch.from_numpy(feat).bfloat16().requires_grad_() for feat in maps()]
    strided = [feat.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for feat in feats]
    with AssignerClient(live.url) as client:
        one = client.loss(feats, BATCH)
        other = client.loss(strided, in_torch(BATCH))
    assert isinstance(one, LossResult)
    np.testing.assert_array_equal(one.loss, other.loss)


def test_a_batch_without_boxes(live: Live) -> None:
    empty = {"batch_idx": np.zeros(0), "cls": np.zeros((0, 1)), "bboxes": np.zeros((0, 4))}
    with AssignerClient(live.url) as client:
        result = client.loss(maps(), empty)
    assert result.loss_items[[0, 2]].tolist() == [0, 0]
    assert result.loss > 0


def test_refusals_show_the_servers_reason(live: Live) -> None:
    with AssignerClient(live.url) as client:
        with pytest.raises(ServerError, match=r"gt_labels\[0, 0\] is 3, and the number of classes is 3") as caught:
            client.loss(maps(), BATCH | {"cls": np.array([0, 3, 0])})
        assert caught.value.status == 400
        with pytest.raises(ServerError, match="no model 'nobody'") as caught:
            client.loss(maps(), BATCH, model="nobody")
        assert caught.value.status == 404
        with pytest.raises(ServerError, match="no output 'boxes'"):
            client.loss(maps(), BATCH, outputs=["boxes"])
        assert client.loss(maps(), BATCH).loss > 0


def test_refusals_before_sending(live: Live) -> None:
    with AssignerClient(live.url) as client:
        with pytest.raises(ValueError, match=r"batch_idx\[2\] is 2, and the number of images is 2"):
            client.loss(maps(), BATCH | {"batch_idx": np.array([0, 1, 2])})
        with pytest.raises(ValueError, match="batch lacks cls"):
            client.loss(maps(), {"batch_idx": [], "bboxes": []})
        with pytest.raises(ValueError, match="feats has 0 maps, but there are 3 strides; give one map"):
            client.loss([], BATCH)


def test_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        AssignerClient(f"127.0.0.1:{port}") as client,
        pytest.raises(ServerError, match="yolo-assigner serve") as caught,
    ):
        client.loss(maps(), BATCH)
    assert caught.value.status is None
