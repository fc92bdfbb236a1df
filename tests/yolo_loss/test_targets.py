"""Targets of other formats: values worked by hand, equality of the formats, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from yolo_loss import DetectionLoss, GroundTruth, pad_ground_truth
from yolo_loss.targets import from_coco, from_padded, from_torchvision, from_voc

SIZE = (100, 200)  # height, width

# Three objects on the first and the third of three images of 100 x 200 pixels. The first spans (20, 10) to (60, 30):
# centre 40, 20, sides 40, 20; as fractions of width 200 and height 100: 0.2, 0.2, 0.2, 0.2.
CORNERS: tuple[list[list[float]], ...] = (
    [[20.0, 10.0, 60.0, 30.0], [0.0, 0.0, 200.0, 100.0]],
    [],
    [[150.0, 50.0, 200.0, 100.0]],
)
LABELS: tuple[list[int], ...] = ([2, 0], [], [1])
BATCH_IDX, CLS = [0, 0, 2], [2, 0, 1]
BOXES = [[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 1.0, 1.0], [0.875, 0.75, 0.25, 0.5]]
IDS = (90, 3, 17)  # category ids of classes 0, 1, 2
NAMES = ("dog", "cat", "tree")


def torchvision_targets() -> list[dict[str, Tensor]]:
    return [
        {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}
        for boxes, labels in zip(CORNERS, LABELS, strict=True)
    ]


def coco_annotations() -> list[list[dict[str, Any]]]:
    return [
        [
            {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": IDS[label], "iscrowd": 0, "id": 7, "area": 1.0}
            for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True)
        ]
        for boxes, labels in zip(CORNERS, LABELS, strict=True)
    ]


def voc_annotations() -> list[dict[str, Any]]:
    """As ``VOCDetection`` gives them: all numbers are text, and an image without objects has no list of them."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    listed = []
    for boxes, labels in zip(CORNERS, LABELS, strict=True):
        things = [
            {
                "name": NAMES[label],
                "difficult": "0",
                "bndbox": {side: f"{number:g}" for side, number in zip(sides, box, strict=True)},
            }
            for box, label in zip(boxes, labels, strict=True)
        ]
        annotation: dict[str, Any] = {"size": {"width": "200", "height": "100", "depth": "3"}}
        listed.append({"annotation": annotation | ({"object": things} if things else {})})
    return listed


def padded() -> Tensor:
    rows = torch.zeros(3, 4, 5)
    rows[0, 0] = torch.tensor([2.0, *CORNERS[0][0]])
    rows[0, 2] = torch.tensor([0.0, *CORNERS[0][1]])  # after an empty slot
    rows[1] = -1.0  # padding of another kind
    rows[2, 3] = torch.tensor([1.0, *CORNERS[2][0]])
    return rows


CONVERSIONS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "torchvision": lambda: from_torchvision(torchvision_targets(), SIZE),
    "coco": lambda: from_coco(coco_annotations(), SIZE, IDS),
    "voc": lambda: from_voc(voc_annotations(), NAMES),
    "padded": lambda: from_padded(padded(), SIZE),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_every_format_gives_the_same_batch(name: str) -> None:
    batch = CONVERSIONS[name]()
    assert list(batch) == ["batch_idx", "cls", "bboxes"]
    assert batch["batch_idx"].tolist() == BATCH_IDX
    assert batch["cls"].tolist() == CLS
    assert batch["bboxes"].flatten().tolist() == pytest.approx(np.ravel(BOXES).tolist(), abs=1e-7)
    assert [column.dtype for column in batch.values()] == [torch.int64, torch.int64, torch.float32]


@pytest.mark.parametrize("name", CONVERSIONS)
def test_the_loss_takes_the_batch(name: str) -> None:
    torch.manual_seed(0)
    # 96 x 192 pixels: the picture of 100 x 200 resized, with the same fractions.
    maps = [torch.randn(3, 4 * 16 + 3, 96 // stride, 192 // stride) for stride in (8, 16, 32)]
    wanted = {"batch_idx": BATCH_IDX, "cls": CLS, "bboxes": BOXES}
    criterion = DetectionLoss(num_classes=3)
    torch.testing.assert_close(criterion(maps, CONVERSIONS[name]()), criterion(maps, wanted))


EMPTY: dict[str, Callable[[int], dict[str, Tensor]]] = {
    "torchvision": lambda n: from_torchvision([{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}] * n, SIZE),
    "torchvision lists": lambda n: from_torchvision([{"boxes": [], "labels": []}] * n, SIZE),
    "coco": lambda n: from_coco([[]] * n, SIZE, IDS),
    "voc": lambda n: from_voc([{"size": {"width": 9, "height": 9}}] * n, NAMES),
    "padded": lambda n: from_padded(torch.zeros(n, 0, 5), SIZE),
    "padded zeros": lambda n: from_padded(torch.zeros(n, 3, 5), SIZE),
}


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("name", EMPTY)
def test_images_without_boxes(name: str, images: int) -> None:
    batch = EMPTY[name](images)
    assert {key: tuple(column.shape) for key, column in batch.items()} == {
        "batch_idx": (0,),
        "cls": (0,),
        "bboxes": (0, 4),
    }
    assert [column.dtype for column in batch.values()] == [torch.int64, torch.int64, torch.float32]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_every_image_may_have_its_own_size(kind: Callable[[Any], Any]) -> None:
    batch = from_torchvision(torchvision_targets(), kind([[100, 200], [1, 1], [200, 400]]))
    # The third image's box (150, 50, 200, 100) in 200 x 400: centre 175, 75, sides 50, 50.
    assert batch["bboxes"][2].tolist() == pytest.approx([0.4375, 0.375, 0.125, 0.25])
    assert batch["bboxes"][:2].flatten().tolist() == pytest.approx(np.ravel(BOXES[:2]).tolist())


def test_two_images_of_one_size_are_not_taken_for_pairs() -> None:
    targets = [torchvision_targets()[0], torchvision_targets()[2]]
    once, twice = (from_torchvision(targets, size) for size in (SIZE, [SIZE, SIZE]))
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_labels_may_begin_behind_the_background() -> None:
    targets = [{**target, "labels": target["labels"] + 1} for target in torchvision_targets()]
    assert from_torchvision(targets, SIZE, first_label=1, num_classes=3)["cls"].tolist() == CLS
    with pytest.raises(ValueError, match=r"targets\[0\]\['labels'\]\[0\] is 3; give whole numbers from 0 to 2"):
        from_torchvision(targets, SIZE, num_classes=3)
    with pytest.raises(ValueError, match=r"targets\[0\]\['labels'\]\[1\] is 0; give whole numbers from 1$"):
        from_torchvision(torchvision_targets(), SIZE, first_label=1)


def test_small_label_types_hold_many_images() -> None:
    target = {"boxes": torch.tensor([[0.0, 0, 20, 10]]), "labels": torch.tensor([1], dtype=torch.uint8)}
    batch = from_torchvision([target] * 300, SIZE, first_label=1)
    assert batch["batch_idx"].tolist() == list(range(300))
    assert set(batch["cls"].tolist()) == {0}


def test_padded_lists_of_three_images_are_not_three_columns() -> None:
    assert from_padded(padded().tolist(), SIZE)["batch_idx"].tolist() == BATCH_IDX  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_boxes_of_any_type(dtype: torch.dtype) -> None:
    targets = [{**target, "boxes": target["boxes"].to(dtype)} for target in torchvision_targets()]
    batch = from_torchvision(targets, SIZE)
    assert batch["bboxes"].dtype == torch.float32
    # All coordinates are whole numbers below 256, which each of these types holds exactly.
    assert batch["bboxes"].flatten().tolist() == pytest.approx(np.ravel(BOXES).tolist(), abs=1e-7)


class Format(Enum):
    """The member of torchvision's enumeration of formats that is refused, and the one that is taken."""

    XYXY = "XYXY"
    CXCYWH = "CXCYWH"


class BoundingBoxes(Tensor):
    """As torchvision's: a tensor that knows its image and its format."""

    canvas_size: tuple[int, int]
    format: Format


def bounding_boxes(corners: Any, box_format: Format) -> Tensor:
    boxes = torch.tensor(corners).reshape(-1, 4).as_subclass(BoundingBoxes)
    boxes.canvas_size, boxes.format = SIZE, box_format
    return boxes


def test_boxes_that_know_their_image_need_no_size() -> None:
    targets = [
        {"boxes": bounding_boxes(boxes, Format.XYXY), "labels": torch.tensor(labels)}
        for boxes, labels in zip(CORNERS, LABELS, strict=True)
    ]
    wanted = CONVERSIONS["torchvision"]()
    batch = from_torchvision(targets)
    assert all(torch.equal(batch[key], wanted[key]) for key in wanted)
    targets[2]["boxes"] = bounding_boxes(CORNERS[2], Format.CXCYWH)
    with pytest.raises(ValueError, match=r"targets\[2\]\['boxes'\] has the format CXCYWH; convert it to XYXY"):
        from_torchvision(targets)


def assert_second_is_a_region(batch: dict[str, Tensor]) -> None:
    """The second of the three objects is a region to ignore, and the others stay."""
    assert list(batch) == ["batch_idx", "cls", "bboxes", "ignore_idx", "ignore_bboxes"]
    assert (batch["batch_idx"].tolist(), batch["cls"].tolist()) == ([0, 2], [2, 1])
    assert batch["bboxes"].flatten().tolist() == pytest.approx(np.ravel([BOXES[0], BOXES[2]]).tolist())
    assert batch["ignore_idx"].tolist() == [0]
    assert batch["ignore_bboxes"].flatten().tolist() == pytest.approx(BOXES[1])
    assert batch["ignore_bboxes"].dtype == torch.float32


def test_crowds_of_coco_are_regions_to_ignore() -> None:
    annotations = coco_annotations()
    annotations[0][1]["iscrowd"] = 1
    assert_second_is_a_region(from_coco(annotations, SIZE, IDS))


def test_crowds_of_torchvision_are_regions_to_ignore() -> None:
    first, *others = torchvision_targets()
    assert_second_is_a_region(from_torchvision([first | {"iscrowd": torch.tensor([0, 1])}, *others], SIZE))


def test_difficult_objects_are_ignored_where_asked_for() -> None:
    annotations = voc_annotations()
    annotations[0]["annotation"]["object"][1]["difficult"] = "1"
    assert_second_is_a_region(from_voc(annotations, NAMES, ignore_difficult=True))
    assert from_voc(annotations, NAMES)["cls"].tolist() == CLS


def test_coco_categories_by_name_of_the_class() -> None:
    assert from_coco(coco_annotations(), SIZE, {90: 5, 3: 6, 17: 7})["cls"].tolist() == [7, 5, 6]


def test_a_coco_side_is_not_rounded_twice() -> None:
    # 0.1 + 0.7 in float64, not in float32, and then once rounded: centre 0.45, width 0.7 of one pixel.
    box = from_coco([[{"bbox": [0.1, 0, 0.7, 1], "category_id": 3}]], (1, 1), IDS)["bboxes"][0]
    assert box.tolist() == np.array([0.45, 0.5, 0.7, 1], np.float32).tolist()


def test_voc_takes_a_single_object_without_a_list() -> None:
    annotation = voc_annotations()[2]["annotation"]
    annotation["object"] = annotation["object"][0]
    batch = from_voc([annotation], {"cat": 4}, SIZE)
    assert batch["cls"].tolist() == [4]
    assert batch["bboxes"][0].tolist() == pytest.approx(BOXES[2])


def test_voc_takes_the_given_size_before_its_own() -> None:
    batch = from_voc(voc_annotations(), NAMES, (200, 400))
    assert batch["bboxes"][0].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("slots", [None, 5])
def test_padded_ground_truth_comes_back(slots: int | None) -> None:
    batch = CONVERSIONS["torchvision"]()
    truth = pad_ground_truth(batch["batch_idx"], batch["cls"], batch["bboxes"], 3, SIZE, slots)
    again = from_padded(truth, SIZE, num_classes=3)
    assert (again["batch_idx"].tolist(), again["cls"].tolist()) == (BATCH_IDX, CLS)
    torch.testing.assert_close(again["bboxes"], batch["bboxes"])


def test_padded_columns_without_a_last_axis() -> None:
    truth = GroundTruth(
        torch.tensor([[1, 7]]), torch.tensor([[[0.0, 0, 100, 50], [9, 9, 9, 9]]]), torch.tensor([[1, 0]])
    )
    batch = from_padded(truth, SIZE, num_classes=3)
    assert (batch["cls"].tolist(), batch["bboxes"].tolist()) == ([1], [[0.25, 0.25, 0.5, 0.5]])


def test_padded_boxes_by_their_centres() -> None:
    batch = from_padded(torch.tensor([[[2.0, 40, 20, 40, 20]]]), SIZE, box_format="xywh")
    assert batch["bboxes"][0].tolist() == pytest.approx(BOXES[0])


def test_boxes_may_reach_out_by_one_pixel() -> None:
    boxes = torch.tensor([[-1.0, -0.5, 201.0, 100.75]])
    assert from_torchvision([{"boxes": boxes, "labels": [0]}], SIZE)["bboxes"][0, 2] == pytest.approx(202 / 200)


def one(box: Any, label: Any = 0) -> dict[str, Any]:
    return {"boxes": torch.tensor([[1.0, 1, 2, 2], box]), "labels": torch.tensor([0, label])}


def voc(**changes: Any) -> list[dict[str, Any]]:
    annotation = voc_annotations()[2]["annotation"]
    return [annotation | {"object": [annotation["object"][0] | changes]}]


def coco(**changes: Any) -> list[list[dict[str, Any]]]:
    return [[], [coco_annotations()[2][0] | changes]]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "beyond": (
        lambda: from_torchvision([one([0.0, 0, 9, 9]), one([0.0, 0, 202, 9])], SIZE),
        r"targets\[1\]\['boxes'\]\[1\] is \[0, 0, 202, 9\] as xyxy; beyond the image of 200 x 100 pixels; clip it, or",
    ),
    "above": (lambda: from_torchvision([one([0.0, -2, 9, 9])], SIZE), r"\[0, -2, 9, 9\] as xyxy; beyond the image"),
    "corners": (
        lambda: from_torchvision([one([5.0, 0, 3, 9])], SIZE),
        r"\[5, 0, 3, 9\] as xyxy; its second corner lies before the first; give x1, y1, x2, y2",
    ),
    "not finite": (lambda: from_torchvision([one([0.0, 0, float("nan"), 9])], SIZE), "give four finite numbers"),
    "no size": (lambda: from_torchvision([one([0.0, 0, 9, 9])]), r"image_size is missing.*give \(height, width\)"),
    "none": (lambda: from_coco(coco(), None, IDS), r"image_size is missing; give \(height, width\)"),  # type: ignore[arg-type]
    "sizes": (
        lambda: from_coco(coco(), [SIZE] * 3, IDS),
        r"image_size has shape \(3, 2\), and there are 2 images; give \(height, width\)",
    ),
    "zero": (lambda: from_coco(coco(), (0, 9), IDS), r"image_size is \[0\.0, 9\.0\]; give .* above 0"),
    "lengths": (
        lambda: from_torchvision([{"boxes": torch.zeros(2, 4), "labels": torch.zeros(3)}], SIZE),
        r"targets\[0\]\['boxes'\] has shape \(2, 4\), expected \(3, 4\)",
    ),
    "key": (
        lambda: from_torchvision([{"bboxes": torch.zeros(2, 4), "labels": torch.zeros(2)}], SIZE),
        r"targets\[0\] lacks boxes, it has bboxes, labels",
    ),
    "negative label": (lambda: from_torchvision([one([0.0, 0, 9, 9], -1)], SIZE), r"\['labels'\]\[1\] is -1; give"),
    "broken label": (lambda: from_torchvision([one([0.0, 0, 9, 9], 0.5)], SIZE), r"\[1\] is 0\.5; give whole numbers"),
    "text": (
        lambda: from_torchvision([{"boxes": torch.zeros(1, 4), "labels": ["dog"]}], SIZE),
        r"targets\[0\]\['labels'\] has dtype",
    ),
    "not a dict": (lambda: from_torchvision([torch.zeros(1, 4)], SIZE), r"targets\[0\] is a Tensor"),  # type: ignore[list-item]
    "category": (
        lambda: from_coco(coco(category_id=4), SIZE, IDS),
        r"annotations\[1\]\[0\]\['category_id'\] is 4, but categories has 90, 3, 17; add it there, or leave",
    ),
    "coco side": (
        lambda: from_coco(coco(bbox=[10, 10, -2, 5]), SIZE, IDS),
        r"annotations\[1\]\[0\]\['bbox'\] is \[10, 10, 8, 15\] as xyxy; its second corner",
    ),
    "coco beyond": (lambda: from_coco(coco(bbox=[150, 10, 60, 5]), SIZE, IDS), r"\['bbox'\] is \[150, 10, 210, 15\]"),
    "coco numbers": (lambda: from_coco(coco(bbox=[1, 2, 3]), SIZE, IDS), r"is \[1, 2, 3\]; give four numbers"),
    "coco key": (lambda: from_coco([[{"bbox": [1, 2, 3, 4]}]], SIZE, IDS), r"annotations\[0\]\[0\] lacks category_id"),
    "voc name": (
        lambda: from_voc(voc(name="car"), NAMES),
        r"annotations\[0\]\['object'\]\[0\]\['name'\] is 'car', but classes has 'dog', 'cat', 'tree'; add it",
    ),
    "voc side": (lambda: from_voc(voc(bndbox={"xmin": 1}), NAMES), r"\['bndbox'\] lacks ymin, it has xmin"),
    "voc number": (
        lambda: from_voc(voc(bndbox={"xmin": "a", "ymin": "1", "xmax": "2", "ymax": "3"}), NAMES),
        r"\['bndbox'\] is \['a', '1', '2', '3'\]; give four numbers",
    ),
    "voc size": (
        lambda: from_voc([voc()[0] | {"size": {"width": "0", "height": "0"}}], NAMES),
        r"annotations\[0\]\['size'\] is \{'width': '0', 'height': '0'\}.*give image_size",
    ),
    "voc no size": (lambda: from_voc([{"object": []}], NAMES), r"annotations\[0\] has no size; give \(height, width\)"),
    "padded shape": (lambda: from_padded(torch.zeros(2, 3, 6), SIZE), r"targets has shape \(2, 3, 6\), expected"),
    "padded label": (
        lambda: from_padded(torch.tensor([[[0.0, 0, 0, 0, 0], [3, 1, 1, 2, 2]]]), SIZE, num_classes=3),
        r"the label of targets\[0, 1\] is 3\.0; give whole numbers from 0 to 2",
    ),
    "padded box": (
        lambda: from_padded(torch.tensor([[[0.0, 0, 0, 0, 0], [0, 1, 1, 300, 2]]]), SIZE),
        r"the box of targets\[0, 1\] is \[1, 1, 300, 2\] as xyxy; beyond",
    ),
    "padded mask": (
        lambda: from_padded((torch.zeros(1, 2), torch.zeros(1, 2, 4), torch.ones(1, 3)), SIZE),
        r"mask has shape \(1, 3\), expected \(1, 2\)",
    ),
    "format": (lambda: from_padded(torch.zeros(1, 2, 5), SIZE, box_format="ltwh"), "expected one of xyxy, xywh"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_names_the_value_and_the_remedy(name: str) -> None:
    convert, text = REFUSED[name]
    with pytest.raises(ValueError, match=text):
        convert()


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU; `make test-gpu` runs it on a machine that has one"
)
def test_stays_on_the_gpu() -> None:
    targets = [{key: column.cuda() for key, column in target.items()} for target in torchvision_targets()]
    for batch in (from_torchvision(targets, SIZE), from_padded(padded().cuda(), torch.tensor(SIZE))):
        assert {column.device.type for column in batch.values()} == {"cuda"}
        assert batch["bboxes"].flatten().tolist() == pytest.approx(np.ravel(BOXES).tolist(), abs=1e-6)
