"""The sparse implementation's own parts: pairs, ragged top-k, segments; and that it equals the dense one to the bit."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from yolo_assigner.export.samples import Case, pyramid, sample_assigner_inputs
from yolo_loss import GroundTruth, TaskAlignedAssigner, make_anchors
from yolo_loss.assigner import IMPLEMENTATIONS
from yolo_loss.assignment import sparse
from yolo_loss.assignment.anchor_grid import candidate_ranges, count_pairs_per_image, expand_ranges, find_anchor_grid
from yolo_loss.assignment.dense import assign_candidates, assign_images, find_candidates
from yolo_loss.assignment.params import AssignerParams, power
from yolo_loss.assignment.segment_ops import segment_count_true, segment_ids, segment_topk
from yolo_loss.execution.channels import Channels, ClassScores, probability

STRIDES = (8.0, 16.0, 32.0)


def grid(*sizes: tuple[int, int], strides: tuple[float, ...] = STRIDES) -> Tensor:
    points, stride = make_anchors([torch.zeros(1, 1, *size) for size in sizes], strides[: len(sizes)])
    return points * stride


def test_rows_and_blocks_of_a_pyramid() -> None:
    # 2 x 3 cells of 8 pixels and 1 x 2 of 16: three rows in two blocks.
    anchor_grid = find_anchor_grid(grid((2, 3), (1, 2)))
    assert anchor_grid.rows.start.tolist() == [0, 3, 6]
    assert anchor_grid.rows.length.tolist() == [3, 3, 2]
    assert anchor_grid.rows.step.tolist() == [8.0, 8.0, 16.0]
    assert (anchor_grid.rows.origin.tolist(), anchor_grid.y.tolist()) == ([4.0, 4.0, 8.0], [4.0, 12.0, 8.0])
    assert anchor_grid.blocks.start.tolist() == [0, 2]
    assert anchor_grid.blocks.length.tolist() == [2, 1]


def test_one_point_off_its_place_breaks_its_row_only() -> None:
    points = grid((3, 3))
    points[1, 0] += 1.0
    anchor_grid = find_anchor_grid(points)
    assert anchor_grid.rows.length.tolist() == [1, 1, 1, 3, 3]
    assert anchor_grid.blocks.length.tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize("size", [320, 640, 1280])
def test_a_pyramid_has_one_block_per_level(size: int) -> None:
    assert len(find_anchor_grid(grid(*pyramid(size, size, STRIDES))).blocks.start) == len(STRIDES)


def brute_force(points: Tensor, boxes: Tensor, valid: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    inside = torch.stack(
        (
            points[:, 0] - boxes[..., 0:1], points[:, 1] - boxes[..., 1:2],
            boxes[..., 2:3] - points[:, 0], boxes[..., 3:4] - points[:, 1],
        )
    ).amin(0) > eps  # fmt: skip
    image, slot, anchor = (inside & valid[..., None]).nonzero().unbind(1)
    return image * boxes.shape[1] + slot, image * len(points) + anchor


@pytest.mark.parametrize(
    "points",
    [
        grid((20, 24), (10, 12), (5, 6)),
        grid((1, 1)),
        grid((7, 1), (1, 9)),
        grid((15, 20), (7, 9), strides=(10.3, 21.7)),
        torch.rand(300, 2, generator=torch.Generator().manual_seed(0)) * 160,
        grid((20, 24)).flip(0),
        grid((20, 24))[torch.randperm(480, generator=torch.Generator().manual_seed(0))],
        torch.tensor([[4.0, 4.0], [4.0, 4.0], [12.0, 4.0]]),
    ],
    ids=["pyramid", "point", "columns", "odd strides", "random", "reversed", "shuffled", "doubled"],
)
@pytest.mark.parametrize("eps", [1e-9, 0.5])
def test_pairs_are_those_of_brute_force(points: Tensor, eps: float) -> None:
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(3, 40, 2, generator=generator) * 200 - 20
    boxes = torch.cat((corner, corner + torch.rand(3, 40, 2, generator=generator) * 90 - 5), dim=-1)
    boxes[0] = (boxes[0] / 4).round() * 4  # edges that run through points
    boxes[2, 0, 2], boxes[2, 1, 0], boxes[2, 2] = float("inf"), -float("inf"), float("nan")
    boxes[2, 3, 0], boxes[2, 4, 3] = float("nan"), float("nan")
    valid = torch.rand(3, 40, generator=generator) > 0.2
    runs = candidate_ranges(points, boxes, valid, eps)
    pairs = expand_ranges(runs)
    slot, anchor = brute_force(points, boxes, valid, eps)
    assert pairs.slot.tolist() == slot.tolist()
    assert pairs.anchor.tolist() == anchor.tolist()
    assert count_pairs_per_image(runs, 3, 40).tolist() == torch.bincount(slot // 40, minlength=3).tolist()


@given(st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32), max_size=150), min_size=1),
       st.integers(1, 60) | st.just(10**5))  # fmt: skip
def test_ragged_topk_is_that_of_sorting(segments: list[list[float]], k: int) -> None:
    count = torch.tensor([len(segment) for segment in segments])
    owner = torch.tensor([i for i, segment in enumerate(segments) for _ in segment], dtype=torch.int64)
    values = torch.tensor([value for segment in segments for value in segment])
    want, offset = [], 0
    for segment in segments:
        order = sorted((i for i, value in enumerate(segment) if value > 0), key=lambda i: (-segment[i], i))
        want += sorted(offset + i for i in order[:k])
        offset += len(segment)
    assert segment_topk(values, owner, count, k).tolist() == want


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_segments(lengths: list[int]) -> None:
    length = torch.tensor(lengths)
    want = torch.repeat_interleave(torch.arange(len(lengths)), length)
    assert segment_ids(length, sum(lengths)).tolist() == want.tolist()


@given(st.lists(st.lists(st.booleans(), max_size=5), min_size=1, max_size=20))
def test_flags_are_counted(segments: list[list[bool]]) -> None:
    flags = torch.tensor([flag for segment in segments for flag in segment], dtype=torch.bool)
    length = torch.tensor([len(segment) for segment in segments])
    assert segment_count_true(flags, length).tolist() == [sum(segment) for segment in segments]


def _unwanted(*_inputs: Any, **_options: Any) -> NoReturn:
    raise AssertionError("another implementation was expected")


@pytest.mark.parametrize(("slots", "name"), [(1, "dense"), (40, "sparse")])
def test_size_decides(monkeypatch: pytest.MonkeyPatch, slots: int, name: str) -> None:
    inputs = sample_assigner_inputs(Case(1, slots, pyramid(320, 320, STRIDES), 4), STRIDES, seed=0)
    assigner = TaskAlignedAssigner(num_classes=4)
    usual = assigner(*inputs)
    for implementation in IMPLEMENTATIONS.keys() - {name}:
        # Replaced, not deleted: put back, it would stand last, and errors list the names in their order.
        monkeypatch.setitem(IMPLEMENTATIONS, implementation, _unwanted)
    for one, other in zip(usual, assigner(*inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("limit", [1, 700, 2**30])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    inputs = sample_assigner_inputs(Case(5, 30, pyramid(160, 256, STRIDES), 4), STRIDES, seed=0)
    inputs[5][2] = 0  # one image without ground truth
    usual = TaskAlignedAssigner(num_classes=4, implementation="dense")(*inputs)
    monkeypatch.setattr(sparse, "PAIRS_PER_CHUNK", limit)
    for one, other in zip(usual, TaskAlignedAssigner(num_classes=4, implementation="sparse")(*inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"topk2": 2},
        {"min_box_side": 20.0, "topk": 3},
        {"alpha": 0.0, "beta": 0.0},
        {"beta": 16.5},
        {"beta": 33.0},
        {"alpha": 0.7, "beta": 5.5},
    ],
)
def test_equals_the_dense_implementation_to_the_bit(seed: int, options: dict[str, float]) -> None:
    # alpha = beta = 0 makes every candidate's metric 1: nothing but ties.
    inputs = sample_assigner_inputs(Case(3, 60, pyramid(160, 256, STRIDES), 4, weak=seed == 3), STRIDES, seed)
    numbers: dict[str, Any] = {"topk": 10, "alpha": 0.5, "beta": 6.0, **options}
    dense, sparse = (
        TaskAlignedAssigner(num_classes=4, implementation=name, **numbers)(*inputs) for name in ("dense", "sparse")
    )
    assert dense.fg_mask.any()
    for one, other in zip(dense, sparse, strict=True):
        assert torch.equal(one, other)
    # Nor does anything depend on the images beside.
    for image in range(3):
        own = (tensor if tensor.dim() == 2 else tensor[image : image + 1] for tensor in inputs)
        alone = TaskAlignedAssigner(num_classes=4, **numbers)(*own)
        for one, other in zip(alone, sparse, strict=True):
            assert torch.equal(one[0], other[image])


@pytest.mark.parametrize("exponent", [0.3, 0.5, 0.7, 1.0, 2.5, 5.5, 6.0, 16.5, 40.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_do_not_depend_on_the_place(exponent: float, dtype: torch.dtype) -> None:
    base = torch.rand(1001, generator=torch.Generator().manual_seed(0), dtype=dtype)
    base[:3] = torch.tensor((0.0, 1.0, 1e-30), dtype=dtype)
    whole = power(base, exponent)
    assert torch.equal(whole, torch.cat([power(one, exponent) for one in base.split(1)]))
    assert torch.equal(whole, torch.cat([power(some, exponent) for some in base.split(7)]))
    # Smallest numbers are rounded to whole multiples of the smallest of all.
    rtol, tiny = max(8 * torch.finfo(dtype).eps, 1e-13), torch.finfo(dtype).tiny
    torch.testing.assert_close(whole.double(), base.double().pow(exponent), rtol=rtol, atol=tiny)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_do_not_depend_on_the_place(dtype: torch.dtype) -> None:
    logits = torch.randn(1001, generator=torch.Generator().manual_seed(0), dtype=dtype) * 8
    logits[:4] = torch.tensor((-200.0, 200.0, -torch.inf, torch.inf), dtype=dtype)
    whole = probability(logits)
    assert torch.equal(whole, torch.cat([probability(one) for one in logits.split(1)]))
    torch.testing.assert_close(whole, logits.sigmoid(), rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny)


@pytest.mark.parametrize("slots", [0, 2])
@pytest.mark.parametrize("levels", [1, 3])
def test_dense_among_candidates_equals_dense_among_all(slots: int, levels: int) -> None:
    """Boxes hold a few of the anchors or none, and class scores lie in one tensor or in levels."""
    scores, boxes, points, *rest = sample_assigner_inputs(Case(2, 2, pyramid(128, 128, STRIDES), 3), STRIDES, seed=4)
    truth = GroundTruth(*rest)
    truth = truth._replace(mask_gt=truth.mask_gt & (torch.arange(2)[:, None] < slots))
    sizes = [256, 64, 16] if levels > 1 else [336]
    channels = [Channels(level, 0, 3) for level in scores.transpose(1, 2).split(sizes, dim=2)]
    inputs = ClassScores(channels, torch.float32), boxes, points, truth, AssignerParams(topk=4)
    want = assign_images(*inputs)
    assert 0 < find_candidates(points, truth, inputs[-1]).any(dim=1).float().mean() < 0.5 or not slots
    assert bool(want.fg_mask.any()) == bool(slots)
    for got, field in zip(assign_candidates(*inputs), want, strict=True):
        assert torch.equal(got, field)


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.numel())
        return result


@pytest.mark.parametrize("k", [10, 16, 17, 64, 1000, 10**5])
def test_large_k_takes_no_more_memory_than_there_are_candidates(k: int) -> None:
    inputs = sample_assigner_inputs(Case(1, 400, pyramid(320, 320, STRIDES), 2), STRIDES, seed=0)
    ground_truth = GroundTruth(*inputs[3:])
    pairs = int(
        candidate_ranges(inputs[2], ground_truth.gt_bboxes, ground_truth.mask_gt.squeeze(-1), 1e-9).length.sum()
    )
    with _Largest() as largest:
        TaskAlignedAssigner(k, 2, 0.5, 6.0, implementation="sparse")(*inputs)
    assert largest.entries <= 5 * pairs + 400 * 64
