"""Which changes of the code invalidate results of the GPU benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu.environment import NOT_COUNTED, SOURCES, code_hash


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files that the hash reads."""
    for source in (*SOURCES, *NOT_COUNTED):
        path = tmp_path / (source if source.endswith(".py") else f"{source}/module.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {source}\n")
    return tmp_path


def test_the_sources_are_there() -> None:
    assert len(code_hash()) == 12


@pytest.mark.parametrize("source", ["serve/inference/runners", "benchmarks/gpu/report.py"])
def test_a_source_that_was_moved_is_named(checkout: Path, source: str) -> None:
    (checkout / source).rename(checkout / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"{source} is not in"):
        code_hash(checkout)


@pytest.mark.parametrize("source", [*SOURCES, *NOT_COUNTED])
def test_only_code_that_decides_figures_invalidates_them(checkout: Path, source: str) -> None:
    before = code_hash(checkout)
    path = checkout / source
    (path / "module.py" if path.is_dir() else path).write_text("# other\n")
    assert (code_hash(checkout) == before) == (source in NOT_COUNTED)
