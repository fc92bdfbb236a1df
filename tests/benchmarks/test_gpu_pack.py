"""What is carried to a bare GPU machine is complete, for this commit, and not too large."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu import pack
from benchmarks.gpu.environment import code_hash


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder with empty files in all places."""
    names = [line.replace("-", "_") for line in pack.WHEELS.read_text().split()]
    wheels = [f"wheels/{name.replace('==', '-')}-cp312-cp312-manylinux_2_28_x86_64.whl" for name in names]
    for name in (*wheels, *(f"models/{name}" for name in pack.MODELS)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "models" / pack.CODE).write_text(code_hash(sources=pack.EXPORTS))
    return tmp_path


def test_a_complete_pack(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack.main(["--check", "--out", str(packed)]) == 0
    assert "is complete" in capsys.readouterr().out


def test_what_is_missing_is_named(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next(packed.glob("wheels/fastapi_offline-*")).unlink()
    (packed / "wheels" / "fastapi_offline-1-py3-none-any.whl").touch()
    (packed / "wheels" / "fastapi-1-py3-none-any.whl").touch()
    (packed / "models" / pack.MODELS[0]).unlink()
    (packed / "models" / pack.CODE).write_text("0000000")
    (packed / "ort.tar.xz").write_bytes(b"0" * (65 * 2**20))
    assert pack.main(["--check", "--out", str(packed)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "two versions of one stop pip" in lines.pop(1)
    assert [line.split()[:3] for line in lines[:3]] == [
        ["no", "wheel", "of"],
        ["no", "model", pack.MODELS[0]],
        ["the", "models", "are"],
    ]
    assert "and 64 can be carried" in lines[3]
