"""The command: its files, exit codes, errors, and going on after an interruption."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra audit")

import pyarrow.dataset as ds
from PIL import Image

from examples.dataset import FOLDER, NAMES
from tests.audit.predictions import contents, mixed_folder
from yolo_assigner.__main__ import main
from yolo_assigner.audit import shard as shards
from yolo_assigner.audit.pictures import Example, read_example

SIZE = 320
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "audit.md"


def audit(*words: str | Path) -> int:
    return main(["audit", *map(str, words)])


def test_files_and_exit_codes(weights: Path, trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ("--data", trees, "--weights", weights, "--imgsz", SIZE, "--out", out)
    assert audit(*map(str, words)) == 0
    printed = capsys.readouterr()
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert printed.out.startswith("98 objects in 2 pictures: ")
    assert "100%" in printed.err
    table = ds.dataset(out / "truths").to_table()
    assert summary["ground_truths"] == table.num_rows == 98
    assert summary["tried"] == {"min_box_side": 16, "imgsz": 2 * SIZE, "stride": 4}
    assert table.schema.field("reason").metadata[b"meaning"].startswith(b"assigned, or why not")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 98
    assert not re.findall(r"https?:|<script|<link", page)

    (trees / "images" / "broken.png").write_bytes(b"")
    assert audit(*map(str, words)) == 1
    printed = capsys.readouterr()
    assert "bad: broken.png: " in printed.err
    assert "broken.png" in (out / "report.html").read_text(encoding="utf-8")


def test_the_run_of_the_docs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("--predictions", FOLDER, "--images", FOLDER, "--out", tmp_path, "--worst", "3") == 0
    page = PAGE.read_text(encoding="utf-8")
    assert f"```text\n{capsys.readouterr().out.splitlines()[0]}\n" in page
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert (summary["reasons"], summary["flags"]["weak"]) == ({"assigned": 98}, 9)
    for size, found in summary["candidates"].items():
        cells = [found["boxes"], found["without"], *(f"{mean:.1f}" for mean in (found["mean"], *found["per_level"]))]
        assert f"| {size} | {' | '.join(map(str, cells))} |" in page
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("data:image/jpeg") == 3


def test_an_interrupted_audit_goes_on(
    weights: Path, trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (64, 48)).save(trees / "images" / "A.png")
    words = ("--data", trees, "--weights", weights, "--imgsz", str(SIZE), "--shard-size", "1")

    def interrupted(item: Any, *others: Any) -> Example:
        if NAMES[0] in item.name:
            raise KeyboardInterrupt
        return read_example(item, *others)

    with monkeypatch.context() as patched:
        patched.setattr(shards, "read_example", interrupted)
        assert audit(*words, "--out", tmp_path / "out") == 130
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "truths").iterdir()}
    assert len(done) == 2
    assert audit(*words, "--out", tmp_path / "out") == 0
    assert done.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "truths").iterdir()}.items()
    # What comes out is what comes out without an interruption.
    assert audit(*words, "--out", tmp_path / "other") == 0
    for path in (tmp_path / "out").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "other" / path.relative_to(tmp_path / "out")).read_bytes()


def test_several_processes_give_the_same_files(tmp_path: Path) -> None:
    folder = mixed_folder(tmp_path / "maps")
    for out, *words in (("one",), ("two", "--workers", "2")):
        assert audit("--predictions", folder, "--out", tmp_path / out, *words) == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--data", FOLDER), "give its state dict as --weights"),
        (("--data", FOLDER / "none", "--weights", "w"), "which does not exist; give a folder with images/ and labels/"),
        (("--data", FOLDER / "README.md", "--weights", "w"), "is not a COCO json"),
        (("--data", FOLDER, "--weights", FOLDER / "none.safetensors"), "none.safetensors"),
        (("--predictions", FOLDER, "--weights", "w"), "leave --weights out"),
        (("--predictions", FOLDER.parent / "none"), "is no folder"),
        (("--predictions", FOLDER, "--topk", "0"), "topk is 0"),
        (("--predictions", FOLDER, "--preset", "best"), "preset is 'best'"),
        (("--predictions", FOLDER, "--batch", "0"), "--batch is 0; give at least 1"),
    ],
)
def test_errors(words: tuple[str | Path, ...], fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(*words, "--out", tmp_path) == 2
    assert fault in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_image_size_that_the_detector_does_not_take(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit("--data", FOLDER, "--weights", weights, "--imgsz", "300", "--out", tmp_path) == 2
    assert "--imgsz is 300; give a multiple of 32" in capsys.readouterr().err


def test_tables_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "truths").mkdir()
    (tmp_path / "truths" / "00000-of-00009.parquet").touch()
    assert audit("--predictions", FOLDER, "--out", tmp_path) == 2
    assert "00000-of-00009.parquet of an audit with another number of files, this one has 1" in capsys.readouterr().err
