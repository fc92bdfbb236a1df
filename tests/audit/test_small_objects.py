"""What is tried beside, and the picture that cannot be overfitted: boxes of 9 x 4 pixels at 640."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("pyarrow", reason="needs the extra audit")

from yolo_assigner.audit.rows import Picture, Tables, explain_rows
from yolo_assigner.audit.shard import audit_shard
from yolo_assigner.audit.sources import find_source, plan_shards
from yolo_assigner.audit.structures import Changes, Settings
from yolo_assigner.audit.table import read_rows
from yolo_assigner.audit.what_if import Tried, choose, count_candidates, iou_ceiling
from yolo_loss.assignment.params import AssignerParams
from yolo_loss.criterion import DetectionLoss

STRIDES = (8, 16, 32)
SIZE = 640
# Centres of 9 x 4 boxes near a multiple of 32 pixels, the line that is farthest from the anchors of all three levels:
# those of stride 8 lie 3.5 pixels from the box's middle, at 4, 12, 20, ..., and 1.5 pixels outside.
CENTRES = ((104.0, 96.5), (300.5, 256.5), (511.0, 415.5), (88.0, 608.5))
NO_CANDIDATE, SIDE = "no_anchor", 8


def small_boxes() -> Tensor:
    """The boxes, normalised (4, 4)."""
    return torch.tensor([(x, y, 9.0, 4.0) for x, y in CENTRES]) / SIZE


def random_maps(size: int, strides: tuple[int, ...] = STRIDES, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 65, size // stride, size // stride, generator=generator) for stride in strides]


def batch_of(boxes: Tensor) -> dict[str, Tensor]:
    return {"batch_idx": torch.zeros(len(boxes)), "cls": torch.zeros(len(boxes)), "bboxes": boxes}


def explained(criterion: DetectionLoss, size: int, boxes: Tensor, strides: tuple[int, ...] = STRIDES) -> Tables:
    return explain_rows(criterion, random_maps(size, strides), batch_of(boxes), [Picture("a", boxes)])


def test_what_is_tried_by_default() -> None:
    assert choose(Changes(), STRIDES, 640, None) == Tried(16, 1280, 4)
    # A min_box_side that is in use already is doubled; an image size becomes a multiple of the coarsest stride.
    assert choose(Changes(imgsz=1000), STRIDES, 640, 16.0) == Tried(32, 1024, 4)
    assert choose(Changes(min_box_side=12), (4, 8, 16, 32), 640, None) == Tried(12, 1280, 2)


def test_counted_candidates_are_those_of_the_assignment() -> None:
    generator = torch.Generator().manual_seed(1)
    centres, sides = torch.rand(300, 2, generator=generator), torch.rand(300, 2, generator=generator) ** 4
    boxes = torch.cat((centres, sides), dim=1)
    for side in (None, 16.0):
        found = explained(DetectionLoss(1, min_box_side=side), 192, boxes)
        corners = torch.tensor([[row[name] for name in ("x1", "y1", "x2", "y2")] for row in found.rows])
        counted = count_candidates(corners, (192, 192), STRIDES, AssignerParams().eps, side)
        assert counted.tolist() == [row["num_candidates"] for row in found.rows]
        assert (counted.sum(dim=1) == 0).any() == (side is None)
        # And what is tried is what comes out when it is done.
        larger = explained(DetectionLoss(1, min_box_side=side), 384, boxes)
        finer = explained(DetectionLoss(1, (4, *STRIDES), min_box_side=side), 192, boxes, (4, *STRIDES))
        sided = explained(DetectionLoss(1, min_box_side=found.tried.min_box_side), 192, boxes)
        for name, other in (("larger_candidates", larger), ("finer_candidates", finer), ("side_candidates", sided)):
            assert [row[name] for row in found.rows] == [sum(row["num_candidates"]) for row in other.rows]
        assert [row["side_assigned"] for row in found.rows] == [row["num_assigned"] for row in sided.rows]


@pytest.mark.parametrize(
    ("box", "ceiling"),
    [
        # 1.5 pixels below the only candidate, of stride 8 at (100, 100): 4 / 5.5.
        ((96.5, 101.5, 105.5, 105.5), 4 / 5.5),
        # Also 2 pixels to its right: (4 x 3) / (6 x 4.5).
        ((102, 101.5, 106, 104.5), 12 / 27),
        # A candidate inside.
        ((96, 96, 106, 106), 1.0),
    ],
)
def test_no_prediction_at_a_candidate_is_better_than_the_ceiling(
    box: tuple[float, float, float, float], ceiling: float
) -> None:
    found = iou_ceiling(box, (SIZE, SIZE), (8,), 1e-9, 9.0)
    assert found == pytest.approx(ceiling)
    low, high = torch.tensor(box[:2]), torch.tensor(box[2:])
    anchor, half_pixels = torch.tensor([100.0, 100.0]), torch.arange(0, 8.5, 0.5)
    sides = torch.cartesian_prod(*[half_pixels] * 4).view(-1, 2, 2)  # every prediction to 8 pixels around
    left, right = anchor - sides[:, 0], anchor + sides[:, 1]
    common = (torch.minimum(high, right) - torch.maximum(low, left)).clamp(min=0).prod(dim=1)
    iou = common / ((high - low).prod() + (right - left).prod(dim=1) - common)
    assert iou.max().item() == pytest.approx(ceiling)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """One picture with boxes of 9 x 4 pixels that no anchor's centre lies in."""
    Image.new("RGB", (SIZE, SIZE), (40, 80, 40)).save(tmp_path / "field.png")
    lines = (" ".join(f"{number:.7f}" for number in box) for box in small_boxes().tolist())
    (tmp_path / "field.txt").write_text("\n".join(f"0 {line}" for line in lines))
    return tmp_path


def test_the_audit_says_why_small_objects_are_not_learned(small: Path, weights: Path, tmp_path: Path) -> None:
    settings = Settings(str(weights))
    (shard,) = plan_shards(find_source(small), settings, tmp_path / "truths", 16)
    audit_shard(shard)
    rows = list(read_rows([Path(shard.target)]))
    assert [row["reason"] for row in rows] == [NO_CANDIDATE] * 4
    assert all(row["nearest_distance"] == pytest.approx(1.5, abs=1e-3) for row in rows)
    # A box of height 8 reaches 4 pixels from its middle, beyond the 3.5.
    assert [row["helping_side"] for row in rows] == [SIDE] * 4
    page = (Path(__file__).parents[2] / "docs" / "howto" / "audit.md").read_text(encoding="utf-8")
    for row in rows:
        assert "min_box_side=8" in row["remedy"]
        assert "can then be 0.73 at most" in row["remedy"]  # 4 / 5.5, see below
        assert f"> {row['sentence']}\n>\n> {row['remedy']}\n" in page
    for name in ("side_candidates", "larger_candidates", "finer_candidates"):
        assert all(row[name] > 0 for row in rows), name


def overfit(criterion: DetectionLoss, size: int) -> tuple[float, Tables]:
    """Train maps, which say small boxes at first, on the picture; the last box loss, and what became of the boxes."""
    maps = [torch.zeros(1, 65, size // int(stride), size // int(stride)) for stride in criterion.strides]
    for level in maps:
        level[:, [16 * side + distance for side in range(4) for distance in (0, 1)]] = 3.0
        level.requires_grad_()
    optimizer = torch.optim.Adam(maps, lr=0.3)
    boxes = small_boxes()
    for _ in range(40):
        optimizer.zero_grad()
        loss, items = criterion(maps, batch_of(boxes))
        loss.backward()
        optimizer.step()
    tables = explain_rows(criterion, [level.detach() for level in maps], batch_of(boxes), [Picture("a", boxes)])
    return items[0].item(), tables


def test_the_picture_that_cannot_be_overfitted() -> None:
    box_loss, tables = overfit(DetectionLoss(1), SIZE)
    assert box_loss == 0
    assert [row["num_assigned"] for row in tables.rows] == [0] * 4


@pytest.mark.parametrize(
    ("criterion", "size", "iou"),
    [
        # An anchor 1.5 pixels outside cannot say a side between itself and the box: the box that it predicts at best
        # is 5.5 pixels high, with an IoU of 4 / 5.5 = 0.73.
        (DetectionLoss(1, min_box_side=SIDE), SIZE, 0.6),
        (DetectionLoss(1), 2 * SIZE, 0.9),
        (DetectionLoss(1, (4, *STRIDES)), SIZE, 0.9),
    ],
    ids=["min_box_side", "larger input", "p2"],
)
def test_each_remedy_overfits_it(criterion: DetectionLoss, size: int, iou: float) -> None:
    box_loss, tables = overfit(criterion, size)
    assert box_loss > 0
    assert all(row["best_iou"] > iou for row in tables.rows)
    assert all(row["best_score"] > 0.5 for row in tables.rows)
