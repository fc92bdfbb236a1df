"""One shard: its rows are those of the explanation; it is written once; bad files are named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("pyarrow", reason="needs the extra audit")

from examples.dataset import FOLDER, NAMES, load_labels, load_pictures, load_sample
from yolo_assigner.audit.detector import load_detector, raw_maps
from yolo_assigner.audit.pictures import Frame, fit, place, read_yolo_labels
from yolo_assigner.audit.shard import audit_shard
from yolo_assigner.audit.sources import find_predictions, find_source, plan_shards
from yolo_assigner.audit.structures import BadFileError, Settings, Shard, Source
from yolo_assigner.audit.table import COLUMNS, read_facts, read_rows
from yolo_loss.criterion import DetectionLoss
from yolo_loss.explain import Reason, explain_loss

SIZE = 320
COUNTS = ("num_chosen", "num_lost", "num_assigned")
NUMBERS = ("weight_sum", "best_iou", "best_score", "helping_side", "clipped_share")


def only_shard(source: Source, settings: Settings, folder: Path) -> Shard:
    (shard,) = plan_shards(source, settings, folder / "truths", 16)
    return shard


def rows_of(shard: Shard) -> list[dict[str, Any]]:
    return list(read_rows([Path(shard.target)]))


def column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]


def check_rows(rows: list[dict[str, Any]], criterion: DetectionLoss, maps: list[torch.Tensor], batch: Any) -> None:
    """Compare rows with the explanation, and their sums with the loss."""
    found = explain_loss(criterion, maps, batch)
    assert found.shares is not None
    valid = found.ground_truth.mask_gt.squeeze(-1)
    assert column(rows, "reason") == [Reason(int(reason)).word for reason in found.truths.reason[valid]]
    assert column(rows, "num_candidates") == found.truths.num_candidates[valid].tolist()
    for name in COUNTS:
        assert column(rows, name) == getattr(found.truths, name)[valid].tolist()
    for name in NUMBERS:
        assert column(rows, name) == pytest.approx(getattr(found.truths, name)[valid].tolist(), rel=1e-5)
    for index, name in enumerate(("box_sum", "dfl_sum")):
        assert sum(column(rows, name)) == pytest.approx(found.shares.image_sums[:, 2 * index].sum().item(), rel=1e-4)


def test_rows_of_pictures_are_those_of_the_explanation(weights: Path, tmp_path: Path) -> None:
    shard = only_shard(find_source(FOLDER), Settings(str(weights), imgsz=SIZE), tmp_path)
    facts = audit_shard(shard)
    assert (facts.images, facts.unlabelled, facts.truths, facts.bad) == (2, 0, 98, ())
    detector = load_detector(weights)
    # Files are read in the order of their names, the sample lists them the other way round.
    pictures, labels = torch.from_numpy(load_pictures(SIZE)).flip(0).contiguous(), load_labels()
    order = [*range(37, 98), *range(37)]
    batch = {
        "batch_idx": 1 - labels["batch_idx"][order],
        "cls": labels["cls"][order],
        "bboxes": labels["bboxes"][order],
    }
    rows = rows_of(shard)
    check_rows(rows, DetectionLoss(1), raw_maps(detector, pictures), batch)
    assert column(rows, "image") == ["OSBS_029.png"] * 61 + ["SOAP_061.png"] * 37
    assert list(rows[0]) == [one.name for one in COLUMNS]


def test_rows_of_stored_predictions(tmp_path: Path) -> None:
    shard = only_shard(find_predictions(FOLDER), Settings(), tmp_path)
    facts = audit_shard(shard)
    assert (facts.images, facts.truths, facts.bad) == (2, 98, ())
    sample = load_sample()
    rows = rows_of(shard)
    check_rows(rows, DetectionLoss(1), [torch.from_numpy(one) for one in sample.feats], sample.batch)
    assert set(column(rows, "image")) == set(NAMES)


def test_coco_gives_what_yolo_folders_give(weights: Path, trees: Path, tmp_path: Path) -> None:
    # A crowd is a region to ignore, and no row. COCO's categories begin with 1.
    settings = Settings(str(weights), imgsz=SIZE)
    yolo = only_shard(find_source(trees), settings, tmp_path / "yolo")
    audit_shard(yolo)
    annotations = [
        {
            "image_id": row["image"],
            "category_id": 7,
            "bbox": [
                400 * (row["label_x"] - row["label_w"] / 2),
                400 * (row["label_y"] - row["label_h"] / 2),
                400 * row["label_w"],
                400 * row["label_h"],
            ],
        }
        for row in rows_of(yolo)
    ]
    crowd = {"image_id": "OSBS_029.png", "category_id": 7, "bbox": [0, 0, 100, 100], "iscrowd": 1}
    content = {
        "images": [{"id": f"{name}.png", "file_name": f"{name}.png"} for name in reversed(NAMES)],
        "annotations": [crowd, *annotations],
        "categories": [{"id": 7, "name": "tree"}],
    }
    (trees / "instances.json").write_text(json.dumps(content))
    source = find_source(trees / "instances.json")
    coco = only_shard(source, settings, tmp_path / "coco")
    audit_shard(coco)
    assert source.class_names == ("tree",)
    for ours, theirs in zip(rows_of(coco), rows_of(yolo), strict=True):
        assert (ours["image"], ours["slot"], ours["reason"]) == (theirs["image"], theirs["slot"], theirs["reason"])
        assert ours["x1"] == pytest.approx(theirs["x1"], abs=1e-3)


def test_a_picture_keeps_its_proportions() -> None:
    # 200 x 100 pixels in a square of 320: 320 x 160, with 80 above and below.
    pixels, frame = fit(Image.new("RGB", (200, 100), (255, 0, 0)), 320)
    assert frame == Frame(0.0, 0.25, 1.0, 0.5)
    assert pixels[:, 79, 0] == pytest.approx([114 / 255] * 3)
    assert pixels[:, 80, 0].tolist() == [1, 0, 0]
    # The middle half of the picture: 80 to 240 across, 120 to 200 down.
    placed = place(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), frame) * 320
    assert placed.tolist() == [[160, 160, 160, 80]]


def test_outlines_become_boxes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0 0.25 0.25 0.75 0.25 0.5 0.5\n\n1 0.5 0.5 0.25 0.125\n")
    labels = read_yolo_labels(path, 2)
    assert labels.boxes.tolist() == [[0.5, 0.375, 0.5, 0.25], [0.5, 0.5, 0.25, 0.125]]
    assert labels.cls.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("0 0.5 0.5 0.1", "line 1 has 4 numbers; give class, centre x"),
        ("0 0.5 0.5 0.1 tree", "line 1: could not convert"),
        ("1 0.5 0.5 0.1 0.1", "the number of classes is 1"),
        ("0 100 50 20 20", "these are pixels"),
        ("0 nan 0.5 0.1 0.1", "give four finite numbers"),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, line: str, fault: str) -> None:
    (tmp_path / "a.txt").write_text(line)
    with pytest.raises(BadFileError, match=r"a\.txt") as refused:
        read_yolo_labels(tmp_path / "a.txt", 1)
    assert fault in str(refused.value)


def test_bad_files_are_named_and_the_others_explained(weights: Path, trees: Path, tmp_path: Path) -> None:
    (trees / "images" / "broken.png").write_bytes((trees / "images" / f"{NAMES[0]}.png").read_bytes()[:5000])
    (trees / "images" / "text.jpg").write_text("no picture")
    (trees / "labels" / f"{NAMES[0]}.txt").write_text("0 0.5\n")
    Image.new("RGB", (64, 48)).save(trees / "images" / "empty.png")
    shard = only_shard(find_source(trees), Settings(str(weights), imgsz=SIZE), tmp_path)
    facts = audit_shard(shard)
    assert [bad.name for bad in facts.bad] == [f"{NAMES[0]}.png", "broken.png", "text.jpg"]
    assert (facts.images, facts.unlabelled, facts.truths) == (2, 1, 61)
    assert read_facts(Path(shard.target)) == facts


def test_bad_predictions_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    (folder / "a.npz").write_bytes(b"no archive")
    (folder / "b.npz").write_bytes((FOLDER / "sample.npz").read_bytes())
    shards = plan_shards(find_predictions(folder), Settings(strides=(8, 16, 30)), tmp_path / "truths", 16)
    faults = [audit_shard(shard).bad[0].fault for shard in shards]
    assert "a.npz cannot be read" in faults[0]
    assert "give the head's" in faults[1]


def test_a_shard_is_computed_once(weights: Path, trees: Path, tmp_path: Path) -> None:
    settings = Settings(str(weights), imgsz=SIZE)
    shard = only_shard(find_source(trees), settings, tmp_path)
    with pytest.raises(InterruptedError):
        audit_shard(shard, interrupt)
    assert not list(tmp_path.rglob("*.parquet*"))
    audit_shard(shard)
    written = Path(shard.target).stat().st_mtime_ns
    # As it travels to another process.
    again = pickle.loads(pickle.dumps(only_shard(find_source(trees), settings, tmp_path)))  # noqa: S301
    assert audit_shard(again, count := Counter()).truths == 98
    assert (count.total, Path(shard.target).stat().st_mtime_ns) == (2, written)
    # A label that changed is explained again.
    (trees / "labels" / f"{NAMES[0]}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert audit_shard(only_shard(find_source(trees), settings, tmp_path)).truths == 62
    assert len(list((tmp_path / "truths").iterdir())) == 1


class Counter:
    """Adds up the progress."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, number: int) -> None:
        """Count some more."""
        self.total += number


def interrupt(number: int) -> None:
    raise InterruptedError(number)
