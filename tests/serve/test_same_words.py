"""The same bad batch in training, in the client and in the server: one verdict, one text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.serve.conftest import Live, assigner_inputs, binary_rows, loss_inputs
from yolo_assigner.serve.client import AssignerClient
from yolo_assigner.serve.wire.dtypes import Array
from yolo_loss import DetectionLoss, TaskAlignedAssigner, make_anchors

BATCH: dict[str, Any] = {
    "batch_idx": np.array([0.0, 1.0, 1.0]),
    "cls": np.array([2.0, 0.0, 1.0]),
    "bboxes": np.array([[0.5, 0.5, 0.5, 0.5], [0.3, 0.3, 0.4, 0.4], [0.6, 0.5, 0.7, 0.9]], np.float32),
}
BOX = "centre x, centre y, width, height as fractions of the image"
MAP = "(B, 4R + C, H, W), one B"
CLASSES = ", and the number of classes is 3; give whole numbers from 0 to 2"
MORE = ", or use a model of more classes"


def maps(side: int = 64) -> list[Array]:
    arrays = loss_inputs(side=side)
    return [arrays[f"feat_{level}"] for level in range(3)]


def tensors(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: tensors(value) for name, value in values.items()}
    return [torch.from_numpy(value) for value in values] if isinstance(values, list) else torch.from_numpy(values)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError, match=r".+") as caught:
        call()
    return str(caught.value)


def by_torch(feats: list[Array], batch: dict[str, Array]) -> str:
    """The criterion's error, the same for tensors, arrays and both."""
    criterion = DetectionLoss(3)
    text = refusal(lambda: criterion(tensors(feats), tensors(batch)))
    assert refusal(lambda: criterion(feats, batch)) == text
    assert refusal(lambda: criterion(tensors(feats), batch)) == text
    return text


def by_client(live: Live, feats: list[Array], batch: dict[str, Array]) -> str:
    with AssignerClient(live.url) as client:
        text = refusal(lambda: client.loss(feats, batch))
        assert refusal(lambda: client.loss_and_gradients(tensors(feats), tensors(batch))) == text
    return text


def by_v1(live: Live, feats: list[Array], batch: dict[str, Array]) -> str:
    document = {"feats": [feat.tolist() for feat in feats], "batch": {key: batch[key].tolist() for key in batch}}
    reply = live.send("POST", "/v1/loss", json.dumps(document, allow_nan=False).encode())
    assert reply.status == 400
    return reply.error


def by_v2(live: Live, model: str, arrays: dict[str, Array]) -> str:
    rows, blob = binary_rows(arrays)
    reply = live.infer(model, {"inputs": rows}, blob)
    assert reply.status == 400
    return reply.error.replace("feat_", "feats[")


def changed(name: str, place: Any, value: float | list[float], dtype: Any = np.float64) -> dict[str, Array]:
    array = BATCH[name].astype(dtype)
    array[place] = value
    return BATCH | {name: array}


# What is done to the batch, what every side says, and whether the client, which knows no class count, says it too.
FINITE: dict[str, tuple[dict[str, Array], str, bool]] = {
    "image out of range": (
        changed("batch_idx", 2, 2),
        "batch_idx[2] is 2, and the number of images is 2; give whole numbers from 0 to 1",
        True,
    ),
    "image negative": (
        changed("batch_idx", 1, -1),
        "batch_idx[1] is -1, and the number of images is 2; give whole numbers from 0 to 1",
        True,
    ),
    "half an image": (
        changed("batch_idx", 0, 0.9),
        "batch_idx[0] is 0.9, and the number of images is 2; give whole numbers from 0 to 1",
        True,
    ),
    "class out of range": (changed("cls", 1, 3), f"cls[1] is 3{CLASSES}{MORE}", False),
    "class far out of range": (changed("cls", 1, 1e30), f"cls[1] is 1e+30{CLASSES}", False),
    "class negative": (changed("cls", 1, -1), f"cls[1] is -1{CLASSES}", False),
    "class with a fraction": (changed("cls", 0, 1.9), f"cls[0] is 1.9{CLASSES}", False),
    "pixels": (
        changed("bboxes", 1, 64.0, np.float32),
        f"bboxes[1] is [64.0, 64.0, 64.0, 64.0]; these are pixels, give {BOX}: divide by the image's width and height",
        True,
    ),
    "classes are missing": (
        BATCH | {"cls": np.zeros(2)},
        "cls has 2 entries, batch_idx has 3; give one of each for every box",
        True,
    ),
}
# What JSON does not have, or typed JSON refuses in words of its own.
OTHERS: dict[str, tuple[dict[str, Array], str, bool]] = {
    "image NaN": (
        changed("batch_idx", 0, np.nan),
        "batch_idx[0] is nan, and the number of images is 2; give whole numbers from 0 to 1",
        True,
    ),
    "class NaN": (changed("cls", 0, np.nan, np.float32), f"cls[0] is nan{CLASSES}", False),
    "class infinite": (changed("cls", 0, np.inf, np.float16), f"cls[0] is inf{CLASSES}", False),
    "class minus infinity": (changed("cls", 2, -np.inf), f"cls[2] is -inf{CLASSES}", False),
    "box NaN": (
        changed("bboxes", (1, 2), np.nan, np.float32),
        "bboxes[1] is [0.3, 0.3, nan, 0.4]; give four finite numbers, or leave the box out",
        True,
    ),
    "pixels beside an infinite box": (
        changed("bboxes", ([0, 2], 0), [99, -np.inf], np.float32),
        "bboxes[2] is [-inf, 0.5, 0.7, 0.9]; give four finite numbers, or leave the box out",
        True,
    ),
    "classes in a table": (
        BATCH | {"cls": np.zeros((3, 2))},
        "cls has shape (3, 2); give (T,), one entry for every box",
        True,
    ),
    "boxes of five numbers": (
        BATCH | {"bboxes": np.zeros((3, 5), np.float32)},
        f"bboxes has shape (3, 5), batch_idx has 3 entries; give (3, 4): {BOX}",
        True,
    ),
    "boxes of integers": (
        BATCH | {"bboxes": np.zeros((3, 4), np.int64)},
        "bboxes has dtype int64, expected a floating-point one; convert it to float32",
        True,
    ),
    "classes of booleans": (
        BATCH | {"cls": np.zeros(3, bool)},
        "cls has dtype bool; give real numbers, as float32 or int64",
        True,
    ),
    "no classes": (
        {"batch_idx": BATCH["batch_idx"], "bboxes": BATCH["bboxes"]},
        f"batch lacks cls; give batch_idx (T,), cls (T,) and bboxes (T, 4), {BOX}",
        True,
    ),
}


@pytest.mark.parametrize("case", FINITE | OTHERS)
def test_batches(live: Live, case: str) -> None:
    batch, text, client_too = (FINITE | OTHERS)[case]
    assert by_torch(maps(), batch) == text
    if client_too:
        assert by_client(live, maps(), batch) == text
    elif case != "class out of range":
        # It says the same but for the range, which the model alone knows.
        assert by_client(live, maps(), batch) == text.split(",")[0] + "; give whole numbers, 0 or more"
    if case in FINITE:
        assert by_v1(live, maps(), batch) == text


MAPS: dict[str, tuple[Callable[[], list[Array]], str]] = {
    "two maps": (
        lambda: maps()[:2],
        "feats has 2 maps, but there are 3 strides; give one map (B, 4R + C, H, W) for each of strides 8, 16, 32, not "
        "(2, 67, 8, 8), (2, 67, 4, 4)",
    ),
    "reversed": (
        lambda: maps()[::-1],
        "feats[0] is 2 x 2 cells of stride 8, an image of 16 x 16 pixels, but feats[1] is 4 x 4 cells of stride 16, an "
        "image of 64 x 64 pixels; give the maps in the order of strides 8, 16, 32, all of the same images",
    ),
    "one cell too many": (
        lambda: [*maps()[:2], np.zeros((2, 67, 2, 3), np.float32)],
        "feats[0] is 8 x 8 cells of stride 8, an image of 64 x 64 pixels, but feats[2] is 2 x 3 cells of stride 32, an "
        "image of 64 x 96 pixels; give the maps in the order of strides 8, 16, 32, all of the same images",
    ),
    "a level without cells": (
        lambda: [*maps()[:2], np.zeros((2, 67, 0, 2), np.float32)],
        "feats[2] has shape (2, 67, 0, 2), no cells; give larger images or fewer levels",
    ),
    "two batch sizes": (
        lambda: [*maps()[:2], maps()[2][:1]],
        f"feats[2] has shape (1, 67, 2, 2), expected (2, {{channels}}, *, *): {MAP}",
    ),
    "three axes": (
        lambda: [maps()[0], maps()[1][:, :, 0], maps()[2]],
        f"feats[1] has shape (2, 67, 4), expected (2, {{channels}}, *, *): {MAP}",
    ),
}


@pytest.mark.parametrize("case", MAPS)
def test_maps(live: Live, case: str) -> None:
    make, text = MAPS[case]
    assert by_torch(make(), BATCH) == text.format(channels=67)
    assert by_client(live, make(), BATCH) == text.format(channels="*")
    if case != "three axes":  # lists of another depth are no map in typed JSON
        empty = "a level without cells" if case == "a level without cells" else None
        reply = by_v1(live, make(), BATCH)
        assert reply == text.format(channels=67) or (empty and "no cells" in reply)
    if case != "two maps":  # an input that is missing
        arrays = {f"feat_{level}": feat for level, feat in enumerate(make())}
        rest = {name: array for name, array in loss_inputs().items() if name not in arrays}
        want = text.format(channels=67).replace("]", "")
        assert by_v2(live, "loss", arrays | rest) == want


def test_channels(live: Live) -> None:
    feats = [feat[:, :66] for feat in maps()]
    text = f"feats[0] has shape (2, 66, 8, 8), expected (2, 67, *, *): {MAP}"
    assert by_torch(feats, BATCH) == text
    assert by_v1(live, feats, BATCH) == text
    arrays = loss_inputs() | {f"feat_{level}": feat for level, feat in enumerate(feats)}
    assert by_v2(live, "loss", arrays) == text.replace("]", "", 1)


def by_all_assigners(live: Live, inputs: dict[str, Array]) -> list[str]:
    with AssignerClient(live.url) as client:
        assigner = TaskAlignedAssigner(num_classes=5)
        return [
            refusal(lambda: assigner(*tensors(inputs).values())),
            refusal(lambda: assigner(*inputs.values())),
            refusal(lambda: client.assign(*inputs.values())),
        ]


def test_padded_classes(live: Live) -> None:
    inputs = assigner_inputs(classes=5)
    inputs["gt_labels"][1, 2] = 5
    text = "gt_labels[1, 2] is 5, and the number of classes is 5; give whole numbers from 0 to 4" + MORE
    assert {*by_all_assigners(live, inputs), by_v2(live, "assigner", inputs)} == {text}


@pytest.mark.parametrize(("value", "shown"), [(1.5, "1.5"), (np.nan, "nan"), (-np.inf, "-inf")])
def test_padded_classes_that_are_not_integers(live: Live, value: float, shown: str) -> None:
    inputs = assigner_inputs(classes=5)
    inputs["gt_labels"] = inputs["gt_labels"].astype(np.float32)
    inputs["gt_labels"][0, 1] = value
    text = f"gt_labels[0, 1] is {shown}, and the number of classes is 5; give whole numbers from 0 to 4"
    assert {*by_all_assigners(live, inputs)} == {text}
    inputs["mask_gt"][0, 1] = False  # padding holds anything
    result = TaskAlignedAssigner(10, 5, 0.5, 6.0)(*tensors(inputs).values())
    with AssignerClient(live.url) as client:
        np.testing.assert_array_equal(client.assign(*inputs.values()).target_labels, result.target_labels)


def test_negative_classes_are_as_their_documents_say(live: Live) -> None:
    """Class 0 in the assigner, as in YOLO code; refused by the server, and by the client before sending."""
    inputs = assigner_inputs(classes=5)
    inputs["gt_labels"][0, 1] = -1
    text = "gt_labels[0, 1] is -1, and the number of classes is 5; give whole numbers from 0 to 4"
    assert TaskAlignedAssigner(num_classes=5)(*tensors(inputs).values()).target_labels.min() == 0
    with AssignerClient(live.url) as client:
        assert refusal(lambda: client.assign(*inputs.values())) == by_v2(live, "assigner", inputs) == text


def test_no_anchor_points(live: Live) -> None:
    inputs = assigner_inputs(classes=5)
    inputs |= {name: inputs[name][:, :0] for name in ("pd_scores", "pd_bboxes")} | {
        "anc_points": inputs["anc_points"][:0]
    }
    text = "pd_scores has 0 anchor points, and nothing can be assigned; give at least one anchor point"
    assert {*by_all_assigners(live, inputs), by_v2(live, "assigner", inputs)} == {text}


def test_no_images(live: Live) -> None:
    """Exported graphs take none; the criterion's loss of none is 0."""
    text = "the batch has 0 images; send at least one image"
    feats, batch = [feat[:0] for feat in maps()], {name: array[:0] for name, array in BATCH.items()}
    assert DetectionLoss(3)(tensors(feats), tensors(batch))[0] == 0
    assert by_client(live, feats, batch) == text
    assert by_v2(live, "loss", loss_inputs(images=0)) == text
    assert by_v2(live, "assigner", assigner_inputs(images=0)) == text
    packed = [{"shape": list(feat.shape), "dtype": "float32", "base64": ""} for feat in feats]
    reply = live.send("POST", "/v1/loss", {"feats": packed, "batch": {name: [] for name in BATCH}})
    assert (reply.status, reply.error) == (400, text)


def test_images_of_odd_sizes_pass_everywhere(live: Live) -> None:
    """150 x 170 pixels: 19 x 22, 10 x 11 and 5 x 6 cells, as a network that rounds up makes them."""
    random = np.random.default_rng(0)
    feats = [random.standard_normal((2, 67, *size), np.float32) for size in ((19, 22), (10, 11), (5, 6))]
    expected = DetectionLoss(3).evaluate(tensors(feats), tensors(BATCH))
    with AssignerClient(live.url) as client:
        assert client.loss(feats, BATCH).loss == pytest.approx(expected.loss.item(), rel=1e-5)
    document = {"feats": [feat.tolist() for feat in feats], "batch": {key: BATCH[key].tolist() for key in BATCH}}
    assert live.send("POST", "/v1/loss", document).json["loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
    reply = live.send("POST", "/v1/assign", document).json
    assert (reply["num_anchors"], reply["imgsz"]) == (19 * 22 + 10 * 11 + 5 * 6, [152, 176])
    points, strides = make_anchors(tensors(feats), (8, 16, 32))
    for image, mask in zip(reply["images"], expected.assignment.fg_mask, strict=True):
        assert image["anchor_idx"] == mask.nonzero().flatten().tolist() != []
        assert image["anchor_points"] == (points * strides)[mask].tolist()
