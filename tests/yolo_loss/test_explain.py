"""Explanations: the same assignment to the bit, shares that add up, and reasons proved by changing what they name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import oracle
from tests.yolo_loss.test_assigner import CASES, STRIDES
from yolo_assigner.export.samples import Case, pyramid, ragged_batch, sample_assigner_inputs, sample_loss_inputs
from yolo_loss import DetectionLoss, EndToEndLoss, GroundTruth, TaskAlignedAssigner, make_anchors
from yolo_loss.assigner import IMPLEMENTATIONS
from yolo_loss.explain import Explanation, Outcome, Reason, explain_assignment, explain_loss
from yolo_loss.explain.duplicates import PAIRS_PER_CHUNK, find_duplicates
from yolo_loss.explain.truths import find_weak

OPTIONS: list[dict[str, Any]] = [
    {},
    {"topk": 1},
    {"topk": 100, "alpha": 1.0},
    {"min_box_side": 16.0},
    {"topk2": 1},
    {"topk2": 3, "min_box_side": 40.0},
    {"alpha": 0.0, "beta": 1.0},
    {"alpha": 0.3, "beta": 0.0},
    {"eps": 1e-3},
]


def grid_of(case: Case) -> tuple[Tensor, Tensor]:
    """Points in pixels and strides of a case's anchors."""
    points, strides = make_anchors([torch.empty((1, 1, *grid)) for grid in case.grids], STRIDES)
    return points * strides, strides


def explain_case(name: str, seed: int, **options: Any) -> tuple[TaskAlignedAssigner, tuple[Tensor, ...], Explanation]:
    case = CASES[name]
    inputs = sample_assigner_inputs(case, STRIDES, seed)
    assigner = TaskAlignedAssigner(num_classes=case.num_classes, **{"topk": 10, "alpha": 0.5, "beta": 6.0, **options})
    return assigner, inputs, explain_assignment(assigner, *inputs, strides=grid_of(case)[1])


def rebuilt(explanation: Explanation) -> np.ndarray[Any, Any]:
    """Slot of each foreground anchor (B, A), -1 on background, from the pairs alone."""
    slots: np.ndarray[Any, Any] = np.full(tuple(explanation.assignment.fg_mask.shape), -1)
    pairs = explanation.pairs
    for image, slot, anchor, outcome in zip(
        *(field.tolist() for field in (pairs.pair_image, pairs.pair_slot, pairs.pair_anchor, pairs.pair_outcome)),
        strict=True,
    ):
        if outcome == Outcome.ASSIGNED:
            assert slots[image, anchor] == -1, "an anchor has one ground truth"
            slots[image, anchor] = slot
    return slots


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_assignment_is_the_assigners_to_the_bit(name: str, options: dict[str, Any], implementation: str) -> None:
    for seed, dtype in ((0, torch.float32), (1, torch.float32), (2, torch.float64)):
        inputs = [
            tensor.to(dtype) if tensor.is_floating_point() else tensor
            for tensor in sample_assigner_inputs(CASES[name], STRIDES, seed)
        ]
        numbers: dict[str, Any] = {"topk": 10, "alpha": 0.5, "beta": 6.0, **options}
        assigner = TaskAlignedAssigner(num_classes=CASES[name].num_classes, implementation=implementation, **numbers)
        want, got = assigner(*inputs), explain_assignment(assigner, *inputs)
        assert torch.equal(got.assignment.fg_mask, want.fg_mask)
        assert torch.equal(got.assignment.target_gt_idx, want.target_gt_idx)
        assert torch.equal(got.assignment.target_weights, want.target_scores.sum(dim=-1))
        np.testing.assert_array_equal(rebuilt(got), torch.where(want.fg_mask, want.target_gt_idx, -1).numpy())


@pytest.mark.parametrize("options", [{}, {"min_box_side": 24.0}, {"topk2": 2}], ids=str)
@pytest.mark.parametrize("name", ["crowded", "more boxes than anchors", "no slots"])
def test_pairs_are_those_of_plain_loops(name: str, options: dict[str, Any]) -> None:
    _, inputs, explanation = explain_case(name, 4, **options)
    scores, boxes, points, labels, gt_boxes, mask = (tensor.double().numpy() for tensor in inputs)
    pairs = {field: tensor.tolist() for field, tensor in explanation.pairs._asdict().items()}
    found = list(zip(*(pairs[f"pair_{name}"] for name in ("image", "slot", "anchor")), strict=True))
    assert found == sorted(found), "by image, ground truth, anchor"
    side = options.get("min_box_side", 0.0)
    want = []
    for b, m, a in np.ndindex(len(gt_boxes), gt_boxes.shape[1], len(points)):
        low, high = gt_boxes[b, m, :2], gt_boxes[b, m, 2:]
        half = np.where(high - low < side, side, high - low) / 2
        centre = (low + high) / 2
        if mask[b, m, 0] and (np.abs(points[a] - centre) < half).all():
            want.append((b, m, a))
    assert found == want
    for row, (b, m, a) in enumerate(found):
        u = max(oracle.ciou(gt_boxes[b, m], boxes[b, a]), 0.0)
        s = scores[b, a, int(labels[b, m, 0])]
        assert pairs["pair_iou"][row] == pytest.approx(u, abs=1e-6)
        assert pairs["pair_score"][row] == pytest.approx(s, rel=1e-6)
        assert pairs["pair_metric"][row] == pytest.approx(s**0.5 * u**6, abs=1e-6)
        rivals = [other for other in range(len(found)) if found[other][:2] == (b, m)]
        better = [o for o in rivals if (-pairs["pair_metric"][o], o) <= (-pairs["pair_metric"][row], row)]
        assert pairs["pair_rank"][row] == len(better)


def test_truths_summarise_their_pairs() -> None:
    _, _, explanation = explain_case("crowded", 6, topk=4)
    truths, pairs = explanation.truths, explanation.pairs
    assert {Reason.ASSIGNED, Reason.INVALID, Reason.NO_ANCHOR} <= set(truths.reason.unique().tolist())
    for b, m in np.ndindex(*truths.reason.shape):
        own = (pairs.pair_image == b) & (pairs.pair_slot == m)
        outcome, metric = pairs.pair_outcome[own], pairs.pair_metric[own]
        levels = pairs.pair_level[own]
        assert truths.num_candidates[b, m].tolist() == [int((levels == level).sum()) for level in range(3)]
        assert truths.num_chosen[b, m] == min(4, int((metric > 0).sum()))
        assert truths.num_lost[b, m] == (outcome == Outcome.LOST_TO).sum()
        assert truths.num_assigned[b, m] == (outcome == Outcome.ASSIGNED).sum()
        assert truths.weight_sum[b, m].item() == pytest.approx(pairs.pair_weight[own].sum().item(), rel=1e-6)
        takers = pairs.pair_lost_to[own][outcome == Outcome.LOST_TO].tolist()
        most = min(takers, key=lambda slot: (-takers.count(slot), slot)) if takers else -1
        assert truths.lost_to[b, m] == most
        for name in ("iou", "score", "metric"):
            values = getattr(pairs, f"pair_{name}")[own]
            best = values.max().item() if len(values) else 0.0
            where = pairs.pair_anchor[own][values.argmax()].item() if best > 0 else -1
            assert getattr(truths, f"best_{name}")[b, m].item() == best
            assert getattr(truths, f"best_{name}_anchor")[b, m].item() == where


# One image of 64 x 64 with the levels 8, 16, 32. Every anchor predicts the box given for it.
SMALL = Case(1, 1, pyramid(64, 64, STRIDES), 2)


class World:
    """One image whose predictions and ground truths a test sets one by one."""

    def __init__(self, *boxes: tuple[float, float, float, float]) -> None:
        self.points, self.strides = grid_of(SMALL)
        self.boxes = [list(box) for box in boxes]
        self.labels = [0] * len(boxes)
        self.valid = [True] * len(boxes)
        self.scores = torch.full((1, len(self.points), 2), 0.5)
        # Far away, so that nothing overlaps.
        self.predicted = torch.tensor([500.0, 500.0, 510.0, 510.0]).repeat(1, len(self.points), 1)

    def predict(self, box: tuple[float, float, float, float], *where: tuple[float, float]) -> None:
        """Let the anchors at these points predict a box; without points, all anchors."""
        for index, point in enumerate(self.points.tolist()):
            if not where or tuple(point) in where:
                self.predicted[0, index] = torch.tensor(box)

    def explain(self, **options: Any) -> Explanation:
        """Explain with the options of the assigner, whose result must be the same."""
        slots = len(self.boxes)
        assigner = TaskAlignedAssigner(num_classes=2, **{"topk": 10, "alpha": 0.5, "beta": 6.0, **options})
        truth = (
            torch.tensor(self.labels).reshape(1, slots, 1),
            torch.tensor(self.boxes).reshape(1, slots, 4),
            torch.tensor(self.valid).reshape(1, slots, 1),
        )
        inputs = (self.scores, self.predicted, self.points, *truth)
        explanation = explain_assignment(assigner, *inputs, strides=self.strides, reg_max=16)
        assert torch.equal(explanation.assignment.fg_mask, assigner(*inputs).fg_mask)
        return explanation

    def reasons(self, **options: Any) -> list[Reason]:
        """The reason of each ground truth."""
        return [Reason(value) for value in self.explain(**options).truths.reason[0].tolist()]


BOX = (8.0, 8.0, 32.0, 32.0)


def test_an_assigned_object_has_no_other_reason() -> None:
    world = World(BOX)
    world.predict(BOX)
    assert world.reasons() == [Reason.ASSIGNED]


@pytest.mark.parametrize("box", [(20.0, 8.0, 20.0, 32.0), (32.0, 8.0, 8.0, 32.0), (8.0, float("nan"), 32.0, 32.0)])
def test_invalid_by_its_box(box: tuple[float, float, float, float]) -> None:
    world = World(box)
    world.predict(BOX)
    assert world.reasons(min_box_side=16.0) == [Reason.INVALID]
    world.boxes = [list(BOX)]
    assert world.reasons(min_box_side=16.0) == [Reason.ASSIGNED]


def test_invalid_by_its_mask() -> None:
    world = World(BOX)
    world.predict(BOX)
    world.valid = [False]
    assert world.reasons() == [Reason.INVALID]
    world.valid = [True]
    assert world.reasons() == [Reason.ASSIGNED]


@pytest.mark.parametrize("shift", [(-64.0, 0.0), (64.0, 0.0), (0.0, -64.0), (0.0, 64.0)])
def test_outside(shift: tuple[float, float]) -> None:
    world = World(BOX)
    x, y = shift
    world.boxes = [[BOX[0] + x, BOX[1] + y, BOX[2] + x, BOX[3] + y]]
    world.predict(BOX)
    assert world.reasons() == [Reason.OUTSIDE]
    # Moved back into the image.
    world.boxes = [list(BOX)]
    assert world.reasons() == [Reason.ASSIGNED]


def test_a_box_at_the_edge_is_not_outside() -> None:
    world = World((-20.0, 8.0, 1.0, 32.0))  # left of every anchor, but a column of it is in the image
    assert world.reasons() == [Reason.NO_ANCHOR]


def test_no_anchor() -> None:
    # Along y the anchors are at 4, 12, 20 (stride 8), 8, 24 (16) and 16 (32): none in 12.5 to 15.5. Along x 4 and 8 lie
    # in 1 to 10. So the nearest are those of stride 8 at (4, 12), half a pixel above the box. The box's centre is at
    # y = 14: a side of 4 would reach 12 exactly, where a point does not count, and 5 is the next whole number.
    box = (1.0, 12.5, 10.0, 15.5)
    world = World(box)
    world.predict(box)
    truths = world.explain().truths
    assert truths.reason.tolist() == [[Reason.NO_ANCHOR]]
    assert truths.nearest_distance.tolist() == [[0.5]]
    assert truths.helping_side.tolist() == [[5.0]]
    assert world.reasons(min_box_side=4.0) == [Reason.NO_ANCHOR]
    assert world.reasons(min_box_side=5.0) == [Reason.ASSIGNED]
    # Or the box itself is enlarged.
    world.boxes = [[1.0, 11.5, 10.0, 15.5]]
    assert world.reasons() == [Reason.ASSIGNED]


def test_no_overlap() -> None:
    world = World(BOX)
    assert world.reasons() == [Reason.NO_OVERLAP]
    world.predict(BOX, (12.0, 12.0))  # one anchor is enough
    explanation = world.explain()
    assert explanation.truths.reason.tolist() == [[Reason.ASSIGNED]]
    assert explanation.truths.num_assigned.tolist() == [[1]]


def test_no_score() -> None:
    world = World(BOX)
    world.predict(BOX)
    world.scores[..., 0] = 0.0
    truths = world.explain().truths
    assert truths.reason.tolist() == [[Reason.NO_SCORE]]
    assert truths.best_iou.item() == pytest.approx(1.0)
    assert truths.best_score.item() == 0.0
    assert world.reasons(alpha=0.0) == [Reason.ASSIGNED]
    world.labels = [1]  # the class that the anchors score
    assert world.reasons() == [Reason.ASSIGNED]
    world.labels = [0]
    world.scores[0, 10, 0] = 1e-6  # the anchor at (20, 12), lifted
    assert world.reasons() == [Reason.ASSIGNED]


def test_contested() -> None:
    # Every anchor predicts the rival, so that it overlaps more everywhere.
    inner = (8.0, 8.0, 30.0, 30.0)
    world = World(inner, BOX)
    world.predict(BOX)
    explanation = world.explain()
    assert explanation.truths.reason.tolist() == [[Reason.CONTESTED, Reason.ASSIGNED]]
    assert explanation.truths.num_chosen.tolist() == [[10, 10]]
    assert explanation.truths.num_lost.tolist() == [[10, 0]]
    assert explanation.truths.lost_to.tolist() == [[1, -1]]
    without_rival = World(inner)
    without_rival.predict(BOX)
    assert without_rival.reasons() == [Reason.ASSIGNED]
    # An anchor that predicts the inner box is enough, too: there the rival overlaps less.
    world.predict(inner, (12.0, 12.0))
    assert world.reasons() == [Reason.ASSIGNED, Reason.ASSIGNED]


def test_main_rival_takes_most_and_the_smallest_wins_a_tie() -> None:
    # The whole row of anchors at y = 12 and y = 20 chooses slot 0 and one of the others, which the anchors predict.
    left, right = (0.0, 8.0, 16.0, 24.0), (16.0, 8.0, 32.0, 24.0)
    world = World((0.0, 8.0, 32.0, 24.0), right, left)
    world.predict(left, (4.0, 12.0), (12.0, 12.0), (4.0, 20.0), (12.0, 20.0))
    world.predict(right, (20.0, 12.0), (28.0, 12.0), (20.0, 20.0), (28.0, 20.0))
    truths = world.explain().truths
    assert truths.num_lost[0].tolist() == [8, 0, 0]
    assert truths.lost_to[0].tolist() == [1, -1, -1]
    world.predict((500.0, 500.0, 510.0, 510.0), (28.0, 20.0))
    truths = world.explain().truths
    assert truths.num_lost[0].tolist() == [7, 0, 0]
    assert truths.lost_to[0].tolist() == [2, -1, -1]


@pytest.mark.parametrize("options", [{}, {"topk": 2}, {"topk2": 1}, {"min_box_side": 12.0}], ids=str)
@pytest.mark.parametrize("name", ["crowded", "more boxes than anchors", "usual"])
def test_reasons_hold_without_the_other_ground_truths(name: str, options: dict[str, Any]) -> None:
    found: set[int] = set()
    for seed in range(3):
        assigner, inputs, explanation = explain_case(name, seed, **options)
        strides = grid_of(CASES[name])[1]
        reason = explanation.truths.reason
        for m in range(reason.shape[1]):
            only = torch.zeros_like(inputs[5])
            only[:, m] = inputs[5][:, m]
            changed = (*inputs[:5], only)
            alone = explain_assignment(assigner, *changed, strides=strides).truths.reason[:, m]
            # Alone, what was contested is assigned; every other reason stays.
            want = torch.where(reason[:, m] == Reason.CONTESTED, int(Reason.ASSIGNED), reason[:, m])
            assert torch.equal(alone, want)
        found |= set(reason.unique().tolist())
    assert {Reason.ASSIGNED, Reason.INVALID} < found
    if name != "usual":
        assert Reason.CONTESTED in found


@pytest.mark.parametrize("min_box_side", [None, 6.0])
@pytest.mark.parametrize("name", ["crowded", "more boxes than anchors", "one class"])
def test_the_helping_side_is_the_smallest_that_helps(name: str, min_box_side: float | None) -> None:
    checked = 0
    for seed in range(3):
        _, inputs, explanation = explain_case(name, seed, min_box_side=min_box_side)
        truths = explanation.truths
        for b, m in torch.nonzero(truths.reason == Reason.NO_ANCHOR).tolist():
            side = truths.helping_side[b, m].item()
            assert side == int(side) > (min_box_side or 0)
            for enough, given in ((True, side), (False, side - 1.02)):
                assigner = TaskAlignedAssigner(num_classes=CASES[name].num_classes, min_box_side=max(given, 0.0))
                after = explain_assignment(assigner, *inputs).truths
                assert (after.num_candidates[b, m].sum() > 0) == enough
            points, box = inputs[2], inputs[4][b, m]
            apart = torch.cat((box[:2] - points, points - box[2:]), dim=1).clamp(min=0)  # (A, 4)
            distance = apart.square().sum(dim=1).sqrt().min().item()
            assert truths.nearest_distance[b, m].item() == pytest.approx(distance, abs=1e-4)
            checked += 1
    assert checked


def test_nearest_anchors_of_points_in_any_order() -> None:
    _, inputs, explanation = explain_case("crowded", 0)
    order = torch.randperm(len(inputs[2]), generator=torch.Generator().manual_seed(0))
    shuffled = (inputs[0][:, order], inputs[1][:, order], inputs[2][order], *inputs[3:])
    got = explain_assignment(TaskAlignedAssigner(10, 3, 0.5), *shuffled).truths
    no_anchor = explanation.truths.reason == Reason.NO_ANCHOR
    assert no_anchor.any()
    np.testing.assert_allclose(got.nearest_distance[no_anchor], explanation.truths.nearest_distance[no_anchor])
    assert torch.equal(got.helping_side[no_anchor], explanation.truths.helping_side[no_anchor])


def test_outcomes_of_candidates() -> None:
    world = World(BOX)
    world.predict(BOX)
    pairs = world.explain(topk=3).pairs
    assert pairs.pair_rank.tolist() == list(range(1, 12)), "equal metrics are ranked by the anchor"
    assert pairs.pair_outcome.tolist() == [Outcome.ASSIGNED] * 3 + [Outcome.BELOW_TOPK] * 8
    assert pairs.pair_level.tolist() == [0] * 9 + [1, 2]
    assert (world.explain(topk=11).pairs.pair_outcome == Outcome.ASSIGNED).all()
    pairs = world.explain(topk=3, topk2=1).pairs
    assert pairs.pair_outcome.tolist()[:4] == [Outcome.ASSIGNED] + [Outcome.DROPPED_BY_TOPK2] * 2 + [Outcome.BELOW_TOPK]
    # A candidate of metric 0 is never chosen, whatever its rank.
    world.predict((500.0, 500.0, 510.0, 510.0), (12.0, 12.0))
    pairs = world.explain(topk=11).pairs
    assert pairs.pair_rank.tolist() == [11, *range(1, 11)]
    assert pairs.pair_outcome.tolist() == [Outcome.BELOW_TOPK] + [Outcome.ASSIGNED] * 10


@pytest.mark.parametrize("options", [{}, {"topk2": 1}, {"topk": 2}], ids=str)
def test_lost_candidates_name_who_took_them(options: dict[str, Any]) -> None:
    lost = 0
    for seed in range(4):
        _, _, explanation = explain_case("crowded", seed, **options)
        pairs = explanation.pairs
        for row in torch.nonzero(pairs.pair_outcome == Outcome.LOST_TO).flatten().tolist():
            winner = (
                (pairs.pair_image == pairs.pair_image[row])
                & (pairs.pair_anchor == pairs.pair_anchor[row])
                & (pairs.pair_slot == pairs.pair_lost_to[row])
            )
            (place,) = torch.nonzero(winner).flatten().tolist()
            assert pairs.pair_outcome[place] in (Outcome.ASSIGNED, Outcome.DROPPED_BY_TOPK2)
            assert pairs.pair_iou[place] >= pairs.pair_iou[row]
            lost += 1
        assert (pairs.pair_lost_to[pairs.pair_outcome != Outcome.LOST_TO] == -1).all()
    assert lost >= 3


def test_duplicates() -> None:
    # 100 x 10 against 96 x 10: IoU 0.96. Against 94 x 10: 0.94. Against both: 94 / 96 = 0.979.
    boxes = torch.tensor([[[0.0, 0, 100, 10], [0, 0, 96, 10], [0, 0, 94, 10], [200, 0, 300, 10], [0, 0, 96, 10]]])
    valid = torch.tensor([[True, True, True, True, False]])
    assert find_duplicates(boxes, valid).tolist() == [[1, 2, 1, -1, -1]]
    # Equal boxes: the smallest other slot. Another image's box is none.
    both = torch.cat((boxes[:, [0, 0, 0]], boxes[:, [0, 3, 3]]))
    assert find_duplicates(both, torch.ones((2, 3), dtype=torch.bool)).tolist() == [[1, 0, 0], [-1, 2, 1]]
    none = torch.zeros((1, 2, 4))
    assert find_duplicates(none, torch.ones((1, 2), dtype=torch.bool)).tolist() == [[-1, -1]], "no area, no IoU"


def test_duplicates_among_more_boxes_than_are_compared_at_once() -> None:
    slots = 700
    assert 2 * slots**2 > PAIRS_PER_CHUNK
    corner = torch.rand((2, slots, 2), generator=torch.Generator().manual_seed(0)) * 1e5
    boxes = torch.cat((corner, corner + 20), dim=-1)
    boxes[1, 650] = boxes[1, 3] + 0.125  # float32 is exact enough here
    found = find_duplicates(boxes, torch.ones((2, slots), dtype=torch.bool))
    assert found[1, 650] == 3
    assert found[1, 3] == 650
    assert (found >= 0).sum() == 2


def test_weak() -> None:
    # Sums of weights: two objects that are predicted exactly have 1 for each of their 11 or so anchors; the third has a
    # single anchor, with an IoU of some 0.03.
    world = World((0.0, 0.0, 24.0, 24.0), (32.0, 0.0, 56.0, 24.0), (32.0, 32.0, 64.0, 64.0), (60.0, 60.0, 61.0, 61.0))
    for box in world.boxes[:2]:
        corner = tuple(box)
        inside = [(x, y) for x, y in world.points.tolist() if corner[0] < x < corner[2] and corner[1] < y < corner[3]]
        world.predict(corner, *inside)  # type: ignore[arg-type]
    world.predict((40.0, 40.0, 46.0, 46.0), (44.0, 44.0))
    truths = world.explain().truths
    first, second, third, _ = truths.weight_sum[0].tolist()
    assert truths.reason[0].tolist() == [Reason.ASSIGNED] * 3 + [Reason.NO_ANCHOR]
    assert 0 < third < 0.1 * min(first, second)
    assert truths.weak[0].tolist() == [False, False, True, False], "what has no anchor is not weak"
    world.predict((32.0, 32.0, 64.0, 64.0))
    assert not world.explain().truths.weak.any()


def test_weak_is_below_a_tenth_of_the_median() -> None:
    # Medians 1, 1, and (0.5 + 1.5) / 2 = 1; the last ground truth of each image has no anchor.
    sums = torch.tensor([[1.0, 1.0, 1.0, 0.099, 0.0], [1.0, 1.0, 1.0, 0.101, 0.0], [0.5, 1.5, 0.09, 2.0, 0.0]])
    assigned = torch.tensor([[True, True, True, True, False]]).expand(3, 5)
    weak = find_weak(sums, assigned)
    assert weak.nonzero().tolist() == [[0, 3], [2, 2]]
    assert not find_weak(sums, torch.zeros_like(assigned)).any()


def test_clipped_sides() -> None:
    # Stride 4, R 16: a side is beyond 14.99 cells, 59.96 pixels. In a box of 64 x 64 the anchor at (2, 2) has its right
    # and lower side 62 pixels away, the one at (6, 2) only its lower side; (30, 30) none.
    points, strides = make_anchors([torch.empty((1, 1, 16, 16))], (4.0,))
    points = points * strides
    box = torch.tensor([[[0.0, 0.0, 64.0, 64.0]]])
    truth = (torch.zeros((1, 1, 1), dtype=torch.long), box, torch.ones((1, 1, 1), dtype=torch.bool))
    scores = torch.zeros((1, 256, 1))
    scores[0, [0, 1, 7 * 16 + 7]] = 0.9
    inputs = (scores, box.expand(1, 256, 4), points, *truth)
    assigner = TaskAlignedAssigner(num_classes=1)
    share = explain_assignment(assigner, *inputs, strides=strides, reg_max=16).truths.clipped_share
    assert share.item() == pytest.approx(3 / 12)
    others: list[dict[str, Any]] = [
        {"strides": strides, "reg_max": 17},
        {"strides": strides, "reg_max": 1},
        {"strides": strides},
        {},
    ]
    for options in others:
        assert explain_assignment(assigner, *inputs, **options).truths.clipped_share.item() == 0


def loss_inputs(case: Case, reg_max: int, seed: int, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Tensor]]:
    feats, *truth = sample_loss_inputs(case, STRIDES, reg_max, seed)
    labels, boxes, mask = truth
    size = (int(case.grids[0][0] * STRIDES[0]), int(case.grids[0][1] * STRIDES[0]))
    return [feat.to(dtype) for feat in feats], ragged_batch(GroundTruth(labels, boxes.to(dtype), mask), size)


LOSS_CASE = Case(2, 12, pyramid(64, 96, STRIDES), 3)
FURTHER = {
    "class_weights": torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 1.0]]),
    "ignore_idx": torch.tensor([0, 1]),
    "ignore_bboxes": torch.tensor([[0.5, 0.5, 0.6, 0.6], [0.25, 0.5, 0.3, 0.4]]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("further", [False, True])
@pytest.mark.parametrize(
    ("options", "case", "reg_max"),
    [
        ({}, LOSS_CASE, 16),
        ({"class_loss": "varifocal", "gains": (1.0, 2.0, 3.0)}, LOSS_CASE, 16),
        ({"preset": "ultralytics-8.4", "topk": 4}, LOSS_CASE, 4),
        ({"topk2": 1}, LOSS_CASE, 1),
        ({}, LOSS_CASE._replace(slots=0), 16),
        ({"implementation": "dense"}, LOSS_CASE, 16),
    ],
)
def test_shares_add_up_to_the_loss(
    options: dict[str, Any], case: Case, reg_max: int, further: bool, dtype: torch.dtype
) -> None:
    feats, batch = loss_inputs(case, reg_max, 0, dtype)
    batch |= {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in FURTHER.items() if further
    }
    criterion = DetectionLoss(3, STRIDES, reg_max, **options)
    want, got = criterion.evaluate(feats, batch), explain_loss(criterion, feats, batch)
    shares = got.shares
    assert shares is not None
    for name in ("fg_mask", "target_gt_idx", "target_weights"):
        assert torch.equal(getattr(got.assignment, name), getattr(want.assignment, name))
    tolerance: dict[str, Any] = {"rel": 1e-12 if dtype == torch.float64 else 2e-6, "abs": 1e-12}
    if criterion.assigner.implementation != "dense":
        assert torch.equal(shares.loss, want.loss)
        assert torch.equal(shares.image_sums, want.image_sums)
    assert shares.loss.item() == pytest.approx(want.loss.item(), **tolerance)
    parts = (shares.truth_loss.sum() + shares.background_loss.sum()).item()
    assert parts == pytest.approx(want.loss.item(), **tolerance)
    sums = shares.truth_sums.sum(dim=1)
    sums[:, 1] += shares.background_sums
    assert sums.flatten().tolist() == pytest.approx(want.image_sums[:, :3].flatten().tolist(), **tolerance)
    assert got.truths.weight_sum.sum(dim=1).tolist() == pytest.approx(want.image_sums[:, 3].tolist(), **tolerance)
    if case.slots:
        assert (shares.truth_loss > 0).any()
        assert (shares.background_loss > 0).all()


def test_a_share_is_what_the_loss_of_its_anchors_is() -> None:
    # Without the ground truth's anchors (their targets replaced by background), the image's sums fall by its share, and
    # its class elements count as background.
    feats, batch = loss_inputs(LOSS_CASE, 16, 1, torch.float64)
    criterion = DetectionLoss(3, STRIDES)
    got = explain_loss(criterion, feats, batch)
    shares = got.shares
    assert shares is not None
    logits = torch.cat([feat[:, 64:].flatten(2) for feat in feats], dim=2)  # (B, C, A)
    for b, m in torch.nonzero(got.truths.num_assigned).tolist():
        anchors = torch.nonzero(got.assignment.fg_mask[b] & (got.assignment.target_gt_idx[b] == m)).flatten()
        weights = got.assignment.target_weights[b, anchors]
        x = logits[b, int(got.ground_truth.gt_labels[b, m, 0]), anchors]
        p = x.sigmoid()
        entropy = -(weights * p.log() + (1 - weights) * (1 - p).log())
        assert shares.truth_sums[b, m, 1].item() == pytest.approx(entropy.sum().item(), rel=1e-9)
    nothing = shares.truth_sums[got.truths.num_assigned == 0]
    assert len(nothing)
    assert (nothing == 0).all()


def test_infinite_logits_stay_where_they_are() -> None:
    feats, batch = loss_inputs(LOSS_CASE, 16, 2, torch.float32)
    criterion = DetectionLoss(3, STRIDES)
    clean = explain_loss(criterion, feats, batch)
    anchor = int(clean.assignment.fg_mask[0, :96].nonzero()[0])  # of the first level, image 0
    label = clean.ground_truth.gt_labels[0, clean.assignment.target_gt_idx[0, anchor], 0]
    feats[0][0, 64 + int(label), anchor // 12, anchor % 12] = torch.inf
    shares = explain_loss(criterion, feats, batch).shares
    assert shares is not None
    assert shares.image_sums[0, 1] == torch.inf
    assert not shares.truth_sums.isnan().any()
    assert not shares.background_sums.isnan().any()
    assert shares.image_sums[1, 1].isfinite()


def test_nothing_carries_a_gradient_and_half_precision_is_widened() -> None:
    feats, batch = loss_inputs(LOSS_CASE, 16, 3, torch.float16)
    criterion = DetectionLoss(3, STRIDES)
    got = explain_loss(criterion, [feat.requires_grad_() for feat in feats], batch)
    want = explain_loss(criterion, [feat.detach().float() for feat in feats], batch)
    assert got.shares is not None
    assert want.shares is not None
    assert got.shares.loss.dtype == torch.float32
    assert not got.shares.loss.requires_grad
    for one, other in zip((*got.truths, *got.pairs), (*want.truths, *want.pairs), strict=True):
        assert torch.equal(one, other)
    # Half-precision maps are read in other pieces, so sums may be rounded otherwise.
    for one, other in zip(got.shares, want.shares, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_every_form_of_predictions_is_explained_alike() -> None:
    feats, batch = loss_inputs(LOSS_CASE, 16, 4, torch.float32)
    criterion = DetectionLoss(3, STRIDES)
    want = explain_loss(criterion, feats, batch)
    joined = torch.cat([feat.flatten(2) for feat in feats], dim=2)
    as_dict = {"boxes": joined[:, :64], "scores": joined[:, 64:], "feats": feats}
    for preds in ((None, feats), as_dict):
        got = explain_loss(criterion, preds, batch)
        for one, other in zip((*got.truths, *got.pairs), (*want.truths, *want.pairs), strict=True):
            assert torch.equal(one, other)


def test_both_parts_of_an_end_to_end_loss() -> None:
    feats, batch = loss_inputs(LOSS_CASE, 16, 5, torch.float32)
    loss = EndToEndLoss(3, STRIDES, epochs=2)
    many, one = (explain_loss(part, feats, batch) for part in (loss.one2many, loss.one2one))
    assert many.truths.num_assigned.max() > 1
    assert one.truths.num_assigned.max() == 1
    assert (one.pairs.pair_outcome == Outcome.DROPPED_BY_TOPK2).any()


def test_strides_of_another_length_are_refused() -> None:
    _, inputs, _ = explain_case("usual", 0)
    with pytest.raises(ValueError, match="strides has 2 entries, anc_points has"):
        explain_assignment(TaskAlignedAssigner(num_classes=3), *inputs, strides=torch.ones((2, 1)))
