"""Hand-worked numbers for the parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import oracle
from yolo_loss import bbox2dist, ciou, decode, dist2bbox, make_anchors, pad_ground_truth, xywh2xyxy, xyxy2xywh
from yolo_loss.assignment.params import power
from yolo_loss.execution.channels import Channels
from yolo_loss.execution.products import softplus, softplus_sums
from yolo_loss.losses import (
    assigned_class_correction,
    background_class_loss,
    dfl_loss,
    sum_by_planes,
    sum_by_products,
)

Coordinates = st.tuples(*[st.floats(-100, 700, width=32)] * 4)


def test_anchors_run_level_by_level_row_by_row() -> None:
    points, strides = make_anchors([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 2)], (8, 16))
    assert points.tolist() == [
        [0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5], [0.5, 0.5], [1.5, 0.5],
    ]  # fmt: skip
    assert strides.flatten().tolist() == [8.0] * 6 + [16.0] * 2


def test_anchors_need_one_stride_per_map() -> None:
    with pytest.raises(ValueError, match="1 feature maps but 2 strides"):
        make_anchors([torch.zeros(1, 1, 2, 3)], (8, 16))


def test_640_pixels_have_8400_anchors() -> None:
    maps = [torch.zeros(1, 1, size, size) for size in (80, 40, 20)]
    assert make_anchors(maps, (8, 16, 32))[0].shape == (8400, 2)


def test_decoding_is_the_expected_distance() -> None:
    # Two bins with logits 0 and ln 3: probabilities 1/4 and 3/4, expected distance 0.75 on the left side only.
    distri = torch.zeros(1, 8, 1)
    distri[0, 1] = math.log(3)
    box = decode(distri, torch.tensor([[2.5, 1.5]]), reg_max=2)
    assert box[0, 0].tolist() == pytest.approx([1.75, 1.0, 3.0, 2.0])


def test_decoding_plain_distances() -> None:
    box = decode(torch.tensor([[[1.0], [2.0], [3.0], [4.0]]]), torch.tensor([[5.0, 5.0]]), reg_max=1)
    assert box[0, 0].tolist() == [4.0, 3.0, 8.0, 9.0]


def test_conversions_by_hand() -> None:
    assert xywh2xyxy(torch.tensor([10.0, 20.0, 4.0, 6.0])).tolist() == [8.0, 17.0, 12.0, 23.0]
    assert xyxy2xywh(torch.tensor([8.0, 17.0, 12.0, 23.0])).tolist() == [10.0, 20.0, 4.0, 6.0]
    point, box = torch.tensor([10.0, 20.0]), torch.tensor([8.0, 17.0, 13.0, 24.0])
    assert bbox2dist(point, box).tolist() == [2.0, 3.0, 3.0, 4.0]
    assert dist2bbox(bbox2dist(point, box), point).tolist() == box.tolist()
    # Outside on the left, and farther than the last pair of bins on the right.
    clamped = bbox2dist(point, torch.tensor([11.0, 20.0, 99.0, 24.0]), reg_max=16)
    assert clamped.tolist() == pytest.approx([0.0, 0.0, 14.99, 4.0])


def test_ciou_by_hand() -> None:
    # Equal sizes, half a width apart: iou = 1/3, hull 6 x 4, c2 = 52, rho2 = 4, same aspect: 1/3 - 4/52.
    value = ciou(torch.tensor([0.0, 0, 4, 4]), torch.tensor([2.0, 0, 6, 4]))
    assert value.item() == pytest.approx(1 / 3 - 1 / 13, abs=1e-6)
    box = torch.tensor([3.0, 4.0, 50.0, 60.0])
    assert ciou(box, box).item() == pytest.approx(1.0, abs=1e-6)


@given(Coordinates, Coordinates)
def test_ciou_agrees_with_the_oracle_on_any_four_numbers(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    # Also degenerate and inverted boxes, to the order of each eps.
    one, two = torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    with np.errstate(invalid="ignore", divide="ignore"):  # an inverted box can make the union 0
        want = oracle.ciou(one.numpy(), two.numpy())
    assert ciou(one, two).item() == pytest.approx(float(want), rel=1e-9, abs=1e-9, nan_ok=True)


def test_distribution_term_by_hand() -> None:
    # All sides 1.25 from the point, R = 4, equal logits: both neighbours cost ln 4 whatever the split.
    point, target = torch.tensor([5.0, 5.0]), torch.tensor([3.75, 3.75, 6.25, 6.25])
    assert dfl_loss(torch.zeros(4, 4), target, point).item() == pytest.approx(math.log(4), rel=1e-6)
    # One side's logit of bin 1 raised by ln 3: its softmax is 1/6, 1/2, 1/6, 1/6, its cost 0.75 ln 2 + 0.25 ln 6.
    distri = torch.zeros(4, 4)
    distri[2, 1] = math.log(3)
    want = (3 * math.log(4) + 0.75 * math.log(2) + 0.25 * math.log(6)) / 4
    assert dfl_loss(distri, target, point).item() == pytest.approx(want, rel=1e-6)


def test_class_terms_by_hand() -> None:
    # One anchor, two classes, logits 0 and 0: softplus(0) = ln 2 each; target 0.5 on class 0 takes 0.5 * 0 away.
    levels, own, weights = Channels(torch.zeros(1, 2, 1), 0, 2), torch.zeros(1), torch.tensor([0.5])
    total = background_class_loss(levels, "bce") + assigned_class_correction(own, weights, "bce")
    assert total.item() == pytest.approx(2 * math.log(2))
    # Varifocal: class 0 weighs q = 0.5, class 1 weighs 0.75 * 0.25.
    total = background_class_loss(levels, "varifocal") + assigned_class_correction(own, weights, "varifocal")
    assert total.item() == pytest.approx(0.5 * math.log(2) + 0.75 * 0.25 * math.log(2))


def test_large_logits_stay_finite() -> None:
    levels, own = Channels(torch.tensor([[[-1e4], [1e4]]]), 0, 2), torch.tensor([1e4])
    total = background_class_loss(levels, "bce") + assigned_class_correction(own, torch.ones(1), "bce")
    assert total.item() == pytest.approx(0.0)


def test_padding_keeps_order_and_finds_empty_images() -> None:
    # Images 2, 0, 2: image 1 is empty; image 2 keeps its two boxes in order of arrival. 100 x 200 pixels (h x w).
    boxes = torch.tensor([[0.5, 0.5, 0.1, 0.2], [0.25, 0.5, 0.5, 1.0], [0.1, 0.1, 0.2, 0.2]])
    labels, gt_bboxes, mask = pad_ground_truth(torch.tensor([2, 0, 2]), torch.tensor([7, 8, 9]), boxes, 3, (100, 200))
    assert labels.squeeze(-1).tolist() == [[8, 0], [0, 0], [7, 9]]
    assert mask.squeeze(-1).tolist() == [[True, False], [False, False], [True, True]]
    assert gt_bboxes[0, 0].tolist() == pytest.approx([0.0, 0.0, 100.0, 100.0])
    assert gt_bboxes[2, 0].tolist() == pytest.approx([90.0, 40.0, 110.0, 60.0])
    assert gt_bboxes[1].abs().sum() == 0


def test_padding_without_boxes() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    labels, gt_bboxes, mask = pad_ground_truth(empty, empty, torch.zeros(0, 4), 3, (64, 64))
    assert (labels.shape, gt_bboxes.shape, mask.shape) == ((3, 0, 1), (3, 0, 4), (3, 0, 1))


def test_a_row_without_positive_coordinates_is_padding() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.0, 0.0], [-0.5, -0.5, 0.2, 0.2], [0.5, 0.5, 0.0, 0.0]])
    mask = pad_ground_truth(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), boxes, 1, (64, 64))[2]
    assert mask.flatten().tolist() == [False, False, True]


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 16, 80, 365])
@pytest.mark.parametrize("level", [-60.0, -17.0, -12.0, 0.0, 30.0, 300.0])
def test_softplus_sum_by_products_loses_no_digits(classes: int, level: float) -> None:
    # All logits about one value: where 1 + e^x is rounded, all of them are rounded the same way.
    spread = torch.rand(2, 5 + classes, 33, generator=torch.Generator().manual_seed(0)) * 0.01
    maps = Channels(level + spread, 5, classes)
    want = softplus(maps.view().double()).sum(dim=(1, 2))
    for got in (
        sum_by_products([maps], torch.float32),
        sum_by_planes(maps, torch.float32),
        softplus_sums([maps.view()], torch.float32),
    ):
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 3.0, 6.0, 6.5, 16.0, 17.0])
def test_powers(exponent: float) -> None:
    base = torch.tensor([0.0, 1e-6, 0.3, 0.999, 1.0], dtype=torch.float64)
    torch.testing.assert_close(power(base, exponent), base**exponent, rtol=1e-14, atol=0)
