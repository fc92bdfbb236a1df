"""Thin requests, with only the anchors and classes that matter: their targets are those of full ones, to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.exports import OTHER_ASSIGNER, exported
from tests.serve.conftest import Live, start, stop
from yolo_assigner.export.contract import file_hash, load_contract
from yolo_assigner.export.verification.verify import verify_model
from yolo_assigner.serve.client import AssignerClient, ServerError
from yolo_assigner.serve.client.predictions import Decoded, Maps
from yolo_assigner.serve.client.thin import (
    ModelOptions,
    Part,
    covered,
    divide,
    enlarge,
    find_needed,
    halve,
    join,
    read_options,
)
from yolo_assigner.serve.detection.grid import anchor_points, points_of
from yolo_assigner.serve.detection.results import COMPACT, Array, AssignmentResult, GroundTruth, complete_targets
from yolo_loss import TaskAlignedAssigner
from yolo_loss.assignment.params import enlarge as enlarge_tensors

STRIDES = (8, 16, 32)
LARGE, SMALL = 10**9, 0  # what a request costs, so that one or many are sent

OPTIONS = st.fixed_dictionaries(
    {
        "topk": st.sampled_from([1, 3, 10, 1000]),
        "alpha": st.sampled_from([0.0, 0.5, 1.0]),
        "beta": st.sampled_from([0.0, 1.0, 6.0]),
        "min_box_side": st.sampled_from([None, 0.0, 7.0, 16.0, 40.0]),
        "topk2": st.sampled_from([None, 1, 2]),
        "eps": st.sampled_from([1e-9, 1.0]),
        "implementation": st.sampled_from(["dense", "sparse"]),
    }
)


def batch(seed: int, images: int, slots: int, classes: int, *, regular: bool) -> dict[str, Array]:
    """Predictions and boxes with many ties, anchors on edges, boxes without any anchor and images without any box."""
    random = np.random.default_rng(seed)
    points = anchor_points((96, 64), STRIDES)
    if not regular:
        points = random.permutation(points + random.uniform(-3, 3, points.shape).astype(np.float32))
    corner = random.integers(0, 15, (images, slots, 2)) * 4.0
    side = random.choice([1.0, 3.0, 8.0, 24.0, 60.0], (images, slots, 2))
    truth = np.concatenate((corner, corner + side), axis=-1).astype(np.float32)
    shown = random.integers(0, 96, (images, len(points), 2))
    boxes = np.concatenate((shown, shown + random.choice([8, 24, 40], shown.shape)), axis=-1).astype(np.float32)
    if slots:  # half of the predictions are one of two boxes, or nearly
        chosen = truth[np.arange(images)[:, None], random.integers(0, min(slots, 2), boxes.shape[:2])]
        boxes = np.where(random.random((*boxes.shape[:2], 1)) < 0.5, chosen + random.choice([0, 1], boxes.shape), boxes)
    mask = (random.random((images, slots, 1)) < 0.7) & (random.random((images, 1, 1)) < 0.8)
    labels = random.integers(0, classes, (images, slots, 1))
    return {
        "pd_scores": random.choice([0.0, 0.25, 0.5, 1.0], (images, len(points), classes)).astype(np.float32),
        "pd_bboxes": boxes.astype(np.float32),
        "anc_points": points,
        "gt_labels": np.where(mask, labels, random.choice([-1, 0], labels.shape)),
        "gt_bboxes": truth,
        "mask_gt": mask,
    }


def compact(assigner: TaskAlignedAssigner, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The three targets that are sent, from the module."""
    targets = assigner(*(torch.from_numpy(array) for array in inputs.values()))
    weights = targets.target_scores.amax(dim=-1)
    return dict(zip(COMPACT, map(np.asarray, (targets.fg_mask, targets.target_gt_idx, weights)), strict=True))


def thin_parts(
    inputs: Mapping[str, Array], min_box_side: float | None, request_bytes: int = SMALL, *, own_points: bool = False
) -> list[Part]:
    """The requests of a batch."""
    truth = GroundTruth(inputs["gt_labels"], inputs["gt_bboxes"], inputs["mask_gt"])
    needed = find_needed(inputs["anc_points"], truth, min_box_side)
    picked = Decoded(inputs["pd_scores"], inputs["pd_bboxes"]).pick(needed)
    options = ModelOptions(min_box_side, own_points)
    return divide(picked, inputs["anc_points"], truth, needed, request_bytes, options)


def assert_equal(ours: Any, theirs: Any) -> None:
    """Equal to the bit, in the same types."""
    for name, one, other in zip(ours._fields, ours, theirs, strict=True):
        assert one.dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(one, other, err_msg=name)


@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 4),
    slots=st.integers(0, 5),
    classes=st.integers(1, 6),
    regular=st.booleans(),
    request_bytes=st.sampled_from([SMALL, LARGE]),
    own_points=st.booleans(),
    given_own=st.booleans(),
    halved=st.booleans(),
    options=OPTIONS,
)
def test_targets_are_those_of_all_anchors(
    seed: int,
    images: int,
    slots: int,
    classes: int,
    regular: bool,
    request_bytes: int,
    own_points: bool,
    given_own: bool,
    halved: bool,
    options: dict[str, Any],
) -> None:
    """For every option, one request for each image or one for all, M = 0 and images without boxes among them.

    Points of all images or of each, as the model takes them and as the caller gives them, and requests in halves.
    """
    inputs = batch(seed, images, slots, classes, regular=regular)
    if given_own:
        inputs["anc_points"] = inputs["anc_points"] + 3 * np.arange(images, dtype=np.float32)[:, None, None]
    full = TaskAlignedAssigner(num_classes=classes, **options)
    parts = thin_parts(inputs, options["min_box_side"], request_bytes, own_points=own_points)
    assert len(parts) <= (1 if request_bytes == LARGE and (own_points or not given_own) else images)
    if halved:
        parts = [half for part in parts for half in (halve(part) if part.images > 1 else [part])]
    replies = []
    for part in parts:
        assert part.inputs["pd_scores"].shape[2] <= classes
        assigner = TaskAlignedAssigner(num_classes=part.inputs["pd_scores"].shape[2], **options)
        replies.append(compact(assigner, part.inputs))
    targets = join(parts, replies, inputs["pd_scores"].shape[:2])
    ours = complete_targets(inputs["gt_labels"], inputs["gt_bboxes"], **targets, num_classes=classes)
    assert_equal(ours, full(*(torch.from_numpy(array) for array in inputs.values())))


def test_by_hand() -> None:
    """Two images of 32 x 16 pixels with stride 8, so 4 x 2 points at (4, 4), (12, 4), ...

    The first has a box from (0, 0) to (16, 8), with the points 0 and 1 inside, of class 7, and one of class 2 from
    (9, 9) to (11, 16), which has no point, but has point 5 at (12, 12) when it is enlarged to 8 pixels: 6 to 14.
    The second has no box.
    """
    points = anchor_points((16, 32), [8])
    labels = np.array([[[7], [2]], [[0], [0]]])
    boxes = np.array([[[0, 0, 16, 8], [9, 9, 11, 16]], [[0, 0, 0, 0]] * 2], np.float32)
    mask = np.array([[[True], [True]], [[False], [False]]])
    scores = np.arange(2 * 8 * 9, dtype=np.float32).reshape(2, 8, 9)
    predicted = np.arange(2 * 8 * 4, dtype=np.float32).reshape(2, 8, 4)
    inputs = dict(zip(("pd_scores", "pd_bboxes", "anc_points"), (scores, predicted, points), strict=True))
    inputs |= {"gt_labels": labels, "gt_bboxes": boxes, "mask_gt": mask}
    (part,) = thin_parts(inputs, None)
    assert (part.image.tolist(), part.anchor.tolist()) == ([0, 0], [0, 1])
    np.testing.assert_array_equal(part.inputs["pd_scores"], scores[:1, :2][:, :, [2, 7]])
    np.testing.assert_array_equal(part.inputs["pd_bboxes"], predicted[:1, :2])
    assert part.inputs["gt_labels"].tolist() == [[[1], [0]]]
    (part,) = thin_parts(inputs, 8.0)
    assert part.anchor.tolist() == [0, 1, 5]
    # With a box from (2, 10) to (14, 14) around point 4 in the second image, both are filled up to the longer one.
    boxes[1, 0], mask[1, 0] = (2, 10, 14, 14), True
    (part,) = thin_parts(inputs, None, LARGE, own_points=True)
    assert part.inputs["anc_points"].tolist() == [[[4, 4], [12, 4]], [[4, 12], [12, 12]]]
    boxes[1, 0, 2] = 11
    (part,) = thin_parts(inputs, None, LARGE, own_points=True)
    assert part.inputs["anc_points"].tolist() == [[[4, 4], [12, 4]], [[4, 12], [1 / 16, 9]]]
    assert (part.row.tolist(), part.column.tolist(), part.anchor.tolist()) == ([0, 0, 1], [0, 1, 0], [0, 1, 4])


@pytest.mark.parametrize("regular", [True, False])
def test_covered_points_are_found_in_both_ways(regular: bool) -> None:
    """By rows and columns, or box by box where every point has its own: the twin of the dense rule."""
    inputs = batch(3, 3, 5, 2, regular=regular)
    points, boxes = inputs["anc_points"], inputs["gt_bboxes"]
    inside = np.minimum(points - boxes[:, :, None, :2], boxes[:, :, None, 2:] - points).min(axis=-1) > 0
    valid = inputs["mask_gt"][..., 0]
    np.testing.assert_array_equal(covered(points, boxes, valid), (inside & valid[..., None]).any(axis=1))
    assert inside.any()


def test_boxes_are_enlarged_at_least_as_the_model_does() -> None:
    boxes = batch(4, 3, 5, 2, regular=True)["gt_bboxes"] + np.float32(1 / 3)
    theirs = enlarge_tensors(torch.from_numpy(boxes), 16.0).numpy()
    ours = enlarge(boxes, 16.0)
    assert (ours[..., :2] <= theirs[..., :2]).all()
    assert (ours[..., 2:] >= theirs[..., 2:]).all()
    np.testing.assert_allclose(ours, theirs, atol=0.01)


@pytest.fixture(scope="module")
def other() -> Iterator[Live]:
    """A server of an assigner with ``min_box_side`` and ``topk2``."""
    server = start("--artifacts", exported("assigner", "sparse", **OTHER_ASSIGNER))
    yield server
    assert stop(server) == 0


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of an assigner in the form of earlier releases, which takes points of all images alone."""
    server = start("--artifacts", export_as_before(exported("assigner", "sparse"), tmp_path_factory.mktemp("earlier")))
    yield server
    assert stop(server) == 0


def export_as_before(folder: Path, out: Path) -> Path:
    """Give an exported assigner the input ``anc_points`` (A, 2)."""
    model = onnx.load(folder / "assigner.onnx")
    for node in model.graph.node:
        node.input[:] = ["sets" if name == "anc_points" else name for name in node.input]
    (points,) = (value for value in model.graph.input if value.name == "anc_points")
    del points.type.tensor_type.shape.dim[0]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    model.graph.node.insert(0, onnx.helper.make_node("Unsqueeze", ["anc_points", "first"], ["sets"]))
    onnx.save(model, out / "assigner.onnx")
    contract = load_contract(folder / "assigner.json")
    inputs = tuple(replace(spec, axes=("A", 2)) if spec.name == "anc_points" else spec for spec in contract.inputs)
    replace(contract, inputs=inputs, sha256=file_hash(out / "assigner.onnx")).save(out / "assigner.json")
    return out


@pytest.fixture(params=["live", "other", "earlier"])
def url(request: pytest.FixtureRequest) -> str:
    """The address of either server."""
    return str(request.getfixturevalue(request.param).url)


@pytest.mark.parametrize("request_bytes", [SMALL, LARGE])
def test_a_served_model_gives_the_same(url: str, request_bytes: int) -> None:
    """Arrays and tensors, in one request or several."""
    with AssignerClient(url, request_bytes=request_bytes) as thin, AssignerClient(url, thin=False) as full:
        found = []
        for seed in range(4):
            inputs = batch(seed, 3, 5 if seed else 0, 4, regular=True)
            expected = full.assign(*inputs.values())
            assert_equal(thin.assign(*inputs.values()), expected)
            assert_equal(thin.assign(*map(torch.from_numpy, inputs.values())), expected)
            found.append(int(expected.fg_mask.sum()))
    assert found[0] == 0
    assert sum(found) > 0


def test_points_of_each_image_are_taken_by_the_client(live: Live) -> None:
    """As the module takes them, with everything sent or what can matter; by a model of earlier releases one by one."""
    inputs = batch(7, 3, 5, 3, regular=True)
    shared = inputs["anc_points"]
    with AssignerClient(live.url) as thin, AssignerClient(live.url, thin=False) as full:
        inputs["anc_points"] = shared[None]
        assert_equal(thin.assign(*inputs.values()), full.assign(*(inputs | {"anc_points": shared}).values()))
        inputs["anc_points"] = shared + 3 * np.arange(3, dtype=np.float32)[:, None, None]
        expected = full.assign(*inputs.values())
        assert_equal(thin.assign(*inputs.values()), expected)
        with pytest.raises(ValueError, match=r"anc_points has shape \(2, 126, 2\)"):
            thin.assign(*(inputs | {"anc_points": inputs["anc_points"][:2]}).values())
        for image in range(3):
            alone = {name: array[image : image + 1] for name, array in inputs.items()}
            for one, other in zip(full.assign(*alone.values()), expected, strict=True):
                np.testing.assert_array_equal(one[0], other[image])


def test_points_of_each_image_are_sent_one_by_one_to_an_earlier_model(earlier: Live, live: Live) -> None:
    inputs = batch(7, 3, 5, 3, regular=True)
    inputs["anc_points"] = inputs["anc_points"] + 3 * np.arange(3, dtype=np.float32)[:, None, None]
    with AssignerClient(earlier.url) as client, AssignerClient(live.url, thin=False) as full:
        assert_equal(client.assign(*inputs.values()), full.assign(*inputs.values()))
    with AssignerClient(earlier.url, thin=False) as client, pytest.raises(ServerError, match=r"it needs 2 axes"):
        client.assign(*inputs.values())


def test_a_request_beyond_a_limit_is_sent_in_halves(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four images with boxes two fit in the limit; then not even one."""
    inputs = batch(2, 5, 5, 3, regular=True) | {"mask_gt": np.ones((5, 5, 1), np.bool_)}
    inputs["gt_labels"] = inputs["gt_labels"].clip(min=0)
    limited = start("--artifacts", exported("assigner", "sparse"), "--max-request-bytes", "2500")
    try:
        with AssignerClient(limited.url) as client, AssignerClient(live.url, thin=False) as full:
            sent = count_bytes(client, monkeypatch)
            assert_equal(client.assign(*inputs.values()), full.assign(*inputs.values()))
            assert len(sent) == 1 + 2
            assert sent[0] == sent[1] + sent[2]
            large = inputs | {"gt_bboxes": np.tile(np.array([0, 0, 96, 96], np.float32), (5, 5, 1))}
            with pytest.raises(ServerError, match="2500"):
                client.assign(*large.values())
    finally:
        assert stop(limited) == 0


def count_bytes(client: AssignerClient, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of a client's requests from now on."""
    sent: list[int] = []
    infer = client.infer

    def listen(model: str, arrays: Mapping[str, Array], *more: Any) -> dict[str, Array]:
        sent.append(sum(array.nbytes for array in arrays.values()))
        return infer(model, arrays, *more)

    monkeypatch.setattr(client, "infer", listen)
    return sent


def test_fewer_bytes_are_sent(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 classes one, and of 2100 anchors those of one box; of a batch without boxes nothing."""
    points = anchor_points((320, 320), STRIDES)
    inputs = {
        "pd_scores": np.full((1, len(points), 20), 0.5, np.float32),
        "pd_bboxes": np.tile(np.array([100, 100, 140, 140], np.float32), (1, len(points), 1)),
        "anc_points": points,
        "gt_labels": np.full((1, 1, 1), 19),
        "gt_bboxes": np.array([[[100, 100, 140, 140]]], np.float32),
        "mask_gt": np.ones((1, 1, 1), np.bool_),
    }
    with AssignerClient(live.url) as client:
        sent = count_bytes(client, monkeypatch)
        assert client.assign(*inputs.values()).fg_mask.sum() == 10
        client.assign(*(inputs | {"mask_gt": inputs["mask_gt"] & False}).values())
    anchors = 4 * 4 + 3 * 3 + 1  # those at 108 to 132, at 104 to 136, and at 112
    assert sent == [anchors * (4 + 16 + 8) + 8 + 16 + 1]


@pytest.mark.parametrize("reg_max", [1, 16])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_assignment_from_maps(live: Live, reg_max: int, convert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to decoding everything, whichever is sent, and to the torch module on decoded maps."""
    random = np.random.default_rng(5)
    sizes = [(96 // stride, 64 // stride) for stride in STRIDES]
    feats = [random.normal(1, 1, (2, 4 * reg_max + 3, *size)).astype(np.float32) for size in sizes]
    truth = {
        "batch_idx": np.array([1, 1, 1]),
        "cls": np.array([2, 0, 2]),
        "bboxes": np.array([[0.5, 0.5, 0.5, 0.5], [0.2, 0.3, 0.3, 0.3], [0.6, 0.5, 0.02, 0.9]], np.float32),
    }
    given_feats = [convert(feat) for feat in feats]
    with AssignerClient(live.url) as thin, AssignerClient(live.url, thin=False) as full:
        sent, all_sent = count_bytes(thin, monkeypatch), count_bytes(full, monkeypatch)
        ours = thin.assign_from_maps(given_feats, truth, reg_max=reg_max)
        assert_equal(ours, full.assign_from_maps(given_feats, truth, reg_max=reg_max))
        with pytest.raises(ValueError, match="give the head's reg_max"):
            thin.assign_from_maps(given_feats, truth, reg_max=17)
    assert 0 < sum(sent) < sum(all_sent) / 2
    points = points_of(sizes, STRIDES)
    scores, boxes = Maps(given_feats, STRIDES, points, reg_max).everything()
    module = TaskAlignedAssigner(topk=10, num_classes=3, alpha=0.5, beta=6.0)
    gt = np.array([[[0, 0, 0, 0]] * 3, [[16, 24, 48, 72], [3.2, 14.4, 22.4, 43.2], [37.76, 4.8, 39.04, 91.2]]])
    labels, mask = np.array([[0, 0, 0], [2, 0, 2]])[..., None], np.array([[False] * 3, [True] * 3])[..., None]
    expected = module(*map(torch.from_numpy, (scores, boxes, points, labels, gt.astype(np.float32), mask)))
    np.testing.assert_array_equal(ours.fg_mask, expected.fg_mask)
    np.testing.assert_array_equal(ours.target_gt_idx, expected.target_gt_idx)
    assert ours.fg_mask[1].any()


def test_decoding_is_that_of_the_loss() -> None:
    """In numpy and in torch, of two different maps and a stride."""
    from yolo_loss import decode, make_anchors

    random = np.random.default_rng(6)
    feats = [random.normal(0, 3, (2, 64 + 2, 96 // stride, 64 // stride)).astype(np.float32) for stride in STRIDES]
    tensors = [torch.from_numpy(feat) for feat in feats]
    points, strides = make_anchors(tensors, STRIDES)
    flat = torch.cat([tensor.flatten(2) for tensor in tensors], dim=2)
    boxes = decode(flat[:, :64], points, 16) * strides
    grid = (points * strides).numpy()
    for given_feats in (feats, tensors):
        decoded = Maps(given_feats, STRIDES, grid, 16).everything()
        np.testing.assert_allclose(decoded.boxes, boxes, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(decoded.scores, flat[:, 64:].sigmoid().transpose(1, 2), rtol=1e-5)


def test_a_model_that_is_reloaded_meanwhile(other: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it turns out to enlarge boxes otherwise than thought, the request is made again."""
    shutil.copytree(exported("assigner", "sparse"), tmp_path, dirs_exist_ok=True)
    server = start("--artifacts", tmp_path)
    inputs = small_and_large_boxes()
    try:
        with AssignerClient(server.url) as client, AssignerClient(other.url, thin=False) as full:
            sent = count_bytes(client, monkeypatch)
            client.assign(*inputs.values())
            shutil.copytree(exported("assigner", "sparse", **OTHER_ASSIGNER), tmp_path, dirs_exist_ok=True)
            assert server.send("POST", "/v2/repository/models/assigner/load").status == 200
            assert_equal(client.assign(*inputs.values()), full.assign(*inputs.values()))
        assert len(sent) == 3
    finally:
        assert stop(server) == 0


def test_servers_with_different_models(live: Live, other: Live) -> None:
    """As in a rolling update: each assignment is that of one of them."""
    inputs = small_and_large_boxes()
    with AssignerClient(live.url, thin=False) as one, AssignerClient(other.url, thin=False) as two:
        allowed = [full.assign(*inputs.values()) for full in (one, two)]
    assert not np.array_equal(allowed[0].fg_mask, allowed[1].fg_mask)
    found = []
    for urls in ([live.url, other.url], [other.url, live.url]):  # the first is asked for its configuration
        with AssignerClient(urls, concurrency=4) as client:
            calls = [client.submit(client.assign, *inputs.values()) for _ in range(40)]
            found += [[equal(call.result(), some) for some in allowed] for call in calls]
    assert all(map(any, found))
    assert all(map(any, zip(*found, strict=True)))


def small_and_large_boxes() -> dict[str, Array]:
    """A box with anchors, and one that has none until it is enlarged; every anchor predicts a box around itself."""
    inputs = batch(1, 2, 2, 3, regular=True)
    points = inputs["anc_points"]
    inputs["pd_bboxes"] = np.tile(np.concatenate((points - 8, points + 8), axis=1), (2, 1, 1))
    inputs["gt_bboxes"] = np.tile(np.array([[28, 28, 32, 32], [40, 40, 90, 80]], np.float32), (2, 1, 1))
    return inputs | {"gt_labels": np.ones((2, 2, 1), np.int64), "mask_gt": np.ones((2, 2, 1), np.bool_)}


def equal(ours: AssignmentResult, theirs: AssignmentResult) -> bool:
    return all(np.array_equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_a_side_that_a_model_does_not_have_is_refused(live: Live, other: Live) -> None:
    inputs = small_and_large_boxes()
    inputs["anc_points"] = inputs["anc_points"][None]
    with AssignerClient(other.url) as client, AssignerClient(live.url) as without:
        for text in ("16.0", "16", "1.6e1"):
            client.infer("assigner", inputs, COMPACT, {"min_box_side": text})
        without.infer("assigner", inputs, COMPACT, {"min_box_side": "null"})
        for text, own in (("null", "16.0"), ("15.0", "16.0"), ("", "16.0")):
            with pytest.raises(ServerError, match=f"is '{text}', but model 'assigner' has '{own}'") as refused:
                client.infer("assigner", inputs, COMPACT, {"min_box_side": text})
            assert refused.value.status == 400
        with pytest.raises(ServerError, match="min_box_side is 16; write the string"):
            client.infer("assigner", inputs, COMPACT, {"min_box_side": 16})


def test_servers_that_do_not_say_get_everything() -> None:
    """Engines take no fewer anchors than they were built for, and other servers have no such parameters."""
    config: dict[str, Any] = {"platform": "onnxruntime_onnx", "parameters": {"min_box_side": {"string_value": "16.0"}}}
    config["input"] = [{"name": "anc_points", "dims": [-1, -1, 2]}]
    assert read_options(json.dumps(config).encode()) == ModelOptions(16.0, own_points=True)
    config["input"] = [{"name": "anc_points", "dims": [-1, 2]}]
    assert read_options(json.dumps(config).encode()) == ModelOptions(16.0)
    config["parameters"]["min_box_side"]["string_value"] = "null"
    assert read_options(json.dumps(config).encode()) == ModelOptions(None)
    assert read_options(json.dumps(config | {"platform": "tensorrt_plan"}).encode()) is None
    assert read_options(json.dumps(config | {"parameters": {}}).encode()) is None
    assert read_options(b"<html>") is None


def test_models_of_earlier_releases_are_verified(tmp_path: Path) -> None:
    folder = export_as_before(exported("assigner", "sparse"), tmp_path)
    differences = verify_model(folder / "assigner.onnx", load_contract(folder / "assigner.json"))
    assert differences
    assert all(difference.passed for difference in differences)
