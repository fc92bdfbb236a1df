"""``python -m benchmarks.bulk`` on a few images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra audit")

from benchmarks.bulk import LOOP, digest, main, store_predictions
from benchmarks.common.programs import run_program
from yolo_assigner.audit.stored import read_stored
from yolo_assigner.audit.structures import Item, Settings


def test_the_stored_predictions_can_be_read(tmp_path: Path) -> None:
    store_predictions(tmp_path, 5, 3)
    paths = sorted(tmp_path.iterdir())
    stored = [read_stored(Item(path.name, str(path)), Settings()) for path in paths]
    assert [len(one.names) for one in stored] == [3, 2]
    # The sample's images in turn, of 37 and 61 trees; no two have the same maps.
    assert [np.bincount(one.batch["batch_idx"]).tolist() for one in stored] == [[37, 61, 37], [61, 37]]
    assert len({bytes(image.numpy()) for one in stored for image in one.maps[2]}) == 5


def test_the_ways_write_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--images", "4", "--each", "2", "--folder", str(tmp_path), "--out", str(tmp_path / "bulk.json")]
    assert main([*words, "--workers", "1"]) == 0
    found = json.loads((tmp_path / "bulk.json").read_text())
    assert found["equal"]
    assert [one["way"] for one in found["ways"]][:2] == [LOOP, "1 process"]
    assert all(one["images_a_second"] > 0 and one["peak_mib"] > 50 for one in found["ways"])
    assert f"| {LOOP} |" in capsys.readouterr().out
    before = digest(tmp_path / "targets")
    next((tmp_path / "targets").iterdir()).write_bytes(b"other")
    assert digest(tmp_path / "targets") != before


def test_a_program_that_fails() -> None:
    with pytest.raises(RuntimeError, match="ended with 3: no more"):
        run_program(["-c", "print('no more'); raise SystemExit(3)"])
