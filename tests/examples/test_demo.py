"""The demo, as a newcomer runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from examples.demo import main
from tests.exports import exported_for_examples


def test_demo_agrees_with_torch_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = exported_for_examples()
    assert main(["--artifacts", str(artifacts), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"{artifacts} is up to date" in printed
    assert "agrees; positive anchors equal" in printed
    assert "61 of 61 trees have one" in printed
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").resize((64, 64)).getcolors(4096) or []) > 100
