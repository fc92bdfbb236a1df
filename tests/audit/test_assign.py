"""Targets of stored predictions: those of the loss, to the bit; the command, its errors, and resuming."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow", reason="needs the extra audit")

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from examples.dataset import FOLDER, NAMES
from tests.audit.predictions import (
    REG_MAX,
    STRIDES,
    Sizes,
    contents,
    mixed_folder,
    random_predictions,
    save,
    small_folder,
)
from tests.docs.markdown import blocks
from yolo_assigner.__main__ import main
from yolo_assigner.audit.assign.targets import COLUMNS, read_targets, schema, targets_of
from yolo_loss import AssignmentResult, DetectionLoss, TaskAlignedAssigner, decode, make_anchors, pad_ground_truth
from yolo_loss.assignment.targets import look_up_targets

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "assign.md"


def assign(*words: str | Path) -> int:
    return main(["assign", *map(str, words)])


class Wanted(NamedTuple):
    """Targets of a file.

    Attributes:
        of_loss: Those of the criterion.
        of_assigner: Those of the public assigner, from dense scores and boxes, whose last digits differ.
    """

    of_loss: AssignmentResult
    of_assigner: AssignmentResult


def expected(path: Path, **options: Any) -> Wanted:
    arrays = safetensors.numpy.load_file(path) if path.suffix == ".safetensors" else dict(np.load(path))
    maps = [torch.from_numpy(arrays[f"feat_{level}"].astype(np.float32)) for level in range(len(STRIDES))]
    images, channels, height, width = maps[0].shape
    classes = channels - 4 * REG_MAX
    batch = {name: torch.from_numpy(arrays[name]) for name in ("batch_idx", "cls", "bboxes")}
    truth = pad_ground_truth(batch["batch_idx"], batch["cls"], batch["bboxes"], images, (8 * height, 8 * width))
    assignment = DetectionLoss(classes, STRIDES, REG_MAX, **options).evaluate(maps, batch).assignment
    flat = torch.cat([one.flatten(2) for one in maps], dim=2)  # (B, 4R + C, A)
    points, strides = make_anchors(maps, STRIDES)
    boxes = decode(flat[:, : 4 * REG_MAX], points, REG_MAX) * strides
    scores = flat[:, 4 * REG_MAX :].transpose(1, 2).sigmoid()
    assigner = TaskAlignedAssigner(10, classes, 0.5, 6.0, **options)
    return Wanted(look_up_targets(assignment, truth, classes), assigner(scores, boxes, points * strides, *truth))


def equal(found: AssignmentResult, wanted: AssignmentResult) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def check_targets(found: AssignmentResult, wanted: Wanted) -> None:
    assert equal(found, wanted.of_loss)
    scores = wanted.of_assigner.target_scores
    torch.testing.assert_close(found.target_scores, scores, rtol=1e-4, atol=0)
    assert equal(found._replace(target_scores=scores), wanted.of_assigner)


def test_targets_are_those_of_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = mixed_folder(tmp_path / "maps"), tmp_path / "targets"
    assert assign("--input", folder, "--output", out) == 1
    printed = capsys.readouterr()
    assert "bad: broken.npz: " in printed.err
    assert "error: 1 files cannot be used" in printed.err
    assert sorted(contents(out)) == ["empty.npz.parquet", "random.safetensors.parquet", "sample.npz.parquet"]
    assigned = objects = 0
    for name in ("empty.npz", "random.safetensors", "sample.npz"):
        targets = read_targets(out / f"{name}.parquet")
        wanted = expected(folder / name)
        check_targets(targets.full(), wanted)
        assigned += int(wanted.of_loss.fg_mask.sum())
        objects += int(targets.ground_truth.mask_gt.sum())
    assert targets.names == NAMES
    assert targets.image_size == (416, 416)
    assert assigned > 500
    assert printed.out.startswith(f"{assigned} anchors learn {objects} objects; images: 7, files: 3\n")


def test_options_are_those_of_the_training(tmp_path: Path) -> None:
    folder, out = small_folder(tmp_path / "maps", 1), tmp_path / "targets"
    words = ("--input", folder, "--output", out)
    assert assign(*words) == 0
    one, other = expected(folder / "000.npz"), expected(folder / "000.npz", min_box_side=16.0, topk2=1)
    assert not equal(one.of_loss, other.of_loss)
    check_targets(read_targets(out / "000.npz.parquet").full(), one)
    # Other options: the file is out of date.
    assert assign(*words, "--preset", "ultralytics-8.4", "--topk2", "1") == 0
    check_targets(read_targets(out / "000.npz.parquet").full(), other)


def test_some_rows_give_their_images(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", random_predictions(Sizes((2, 5, 0, 1))))
    assert assign("--input", tmp_path, "--output", tmp_path / "out") == 0
    table = pq.read_table(tmp_path / "out" / "a.npz.parquet")
    whole, some = targets_of(table).full(), targets_of(pa.concat_tables([table[3:], table[1:3]])).full()
    assert equal(some, AssignmentResult(*(field[[3, 1, 2]] for field in whole)))
    with pytest.raises(ValueError, match="num_anchors is 126, 5; give the rows of one or more images of one size"):
        targets_of(pa.concat_tables([table, table.set_column(3, "num_anchors", pa.array([5] * 4, pa.int32()))]))
    with pytest.raises(ValueError, match="height is missing, for there is no row"):
        targets_of(table[:0])
    with pytest.raises(ValueError, match="lacks slots"):
        targets_of(table.drop_columns(["slots"]))
    with pytest.raises(ValueError, match="cannot be read"):
        read_targets(FOLDER / "sample.npz")


def test_the_page_describes_every_column() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w\[\]]+) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [tuple(column) for column in COLUMNS]
    assert [field.metadata[b"meaning"].decode() for field in schema()] == [column.meaning for column in COLUMNS]


def test_the_run_of_the_docs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command prints what the page says, and its Python reads what the command wrote."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(FOLDER.parent)
    (shown,) = (block for block in blocks(PAGE) if block.output is not None)
    assert main(shown.code.split()[1:]) == 0
    assert capsys.readouterr().out == shown.output
    (reading,) = (block for block in blocks(PAGE) if block.language == "python")
    found: dict[str, Any] = {}
    exec(reading.code, found)  # noqa: S102 - the repository's own page
    assert found["fg_mask"].sum() == 953
    assert [array.shape for array in (found["labels"], found["boxes"])] == [(2, 3549), (2, 3549, 4)]


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    folder, out = small_folder(tmp_path / "maps", 3), tmp_path / "targets"
    words = ("--input", folder, "--output", out)
    assert assign(*words) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    folder = folder.rename(tmp_path / "moved")  # folders do not count
    words = ("--input", folder, "--output", out)
    (folder / "000.npz").write_bytes(b"spoiled")
    save(folder / "002.npz", random_predictions(Sizes((1, 1))))
    partial = out / f".000.npz.parquet.{os.uname().nodename}.{2**22 + 1}.partial"  # beyond the largest process id
    partial.write_bytes(b"of a run that was killed")
    assert assign(*words) == 1
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    kept = {path for path, moment in after.items() if before[path] == moment}
    assert {path.name for path in after} == {"001.npz.parquet", "002.npz.parquet"}
    assert {path.name for path in kept} == {"001.npz.parquet"}
    (folder / "000.npz").unlink()
    assert assign(*words) == 0


def test_targets_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = small_folder(tmp_path / "maps", 2), tmp_path / "targets"
    assert assign("--input", folder, "--output", out) == 0
    (folder / "more" / "001.npz").unlink()
    assert assign("--input", folder, "--output", out) == 2
    assert "targets holds more/001.npz.parquet of predictions that are not there any more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--input", FOLDER.parent / "none"), "is no folder"),
        (("--input", FOLDER, "--workers", "0"), "--workers is 0; give at least 1"),
        (("--input", FOLDER, "--topk", "0"), "topk is 0"),
        (("--input", FOLDER, "--preset", "best"), "preset is 'best'"),
    ],
)
def test_errors(words: tuple[str | Path, ...], fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert assign(*words, "--output", tmp_path) == 2
    assert fault in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
