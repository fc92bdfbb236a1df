"""The demo, as a newcomer runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def test_demo_agrees_with_torch_and_draws(tmp_path: Path) -> None:
    words = ("-m", "examples.demo", "--artifacts", str(tmp_path / "artifacts"), "--out", str(tmp_path))
    first = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "agrees; positive anchors equal" in first.stdout
    assert "61 of 61 trees have one" in first.stdout
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").resize((64, 64)).getcolors(4096) or []) > 100

    again = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "is up to date" in again.stdout
