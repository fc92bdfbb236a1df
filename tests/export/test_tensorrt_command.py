"""The command ``yolo-assigner export tensorrt``."""

from __future__ import annotations

import shlex
import shutil
import signal
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from tests.export.engines import INSTALLED
from yolo_assigner.export import cli
from yolo_assigner.export.contract import ENGINE_SUFFIX
from yolo_assigner.export.to_tensorrt import progress
from yolo_assigner.export.to_tensorrt.build import keep_timings, use_timings
from yolo_assigner.export.to_tensorrt.contract import EngineContract, load_engine_contract
from yolo_assigner.export.to_tensorrt.library import default_runtime, load_library
from yolo_assigner.export.to_tensorrt.log import BuildLog, make_logger

WORDS = ["--profile", "B=1,2,4", "M=0,3,8", "imgsz=64"]


@pytest.fixture
def folder(dense_dir: Path, tmp_path: Path) -> Path:
    """A copy of the models in a writable folder."""
    return Path(shutil.copytree(dense_dir, tmp_path / "models"))


def only_engine(folder: Path) -> EngineContract:
    (path,) = folder.glob(f"*{ENGINE_SUFFIX}")
    return load_engine_contract(path)


def run(*words: str | Path) -> int:
    return cli.main(["tensorrt", *map(str, words)])


@pytest.mark.parametrize("runtime", INSTALLED)
def test_building_from_words_to_files(folder: Path, runtime: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder / "loss.onnx", "--runtime", runtime, *WORDS) == 0
    engine = only_engine(folder)
    assert (engine.name, engine.runtime, engine.precision) == ("loss", runtime, "fp32")
    shown, progress_shown = capsys.readouterr()
    assert f"wrote {folder / engine.file} (" in shown
    assert "  sizes B=1,2,4 M=0,3,8 H0=8 W0=8 H1=4 W1=4 H2=2 W2=2\n" in shown
    assert f"for {runtime} {engine.runtime_version} on compute capability" in shown
    # Without a terminal there is a line for each phase, and no warning of TensorRT is shown.
    assert [line[:4] for line in progress_shown.splitlines()] == ["  0%", " 33%", " 67%"]


def test_the_default_runtime_is_the_first_that_is_there(folder: Path, tmp_path: Path) -> None:
    assert run(folder / "assigner.onnx", "--quiet", "--out", tmp_path / "out", *WORDS) == 0
    assert default_runtime() == INSTALLED[0]
    assert only_engine(tmp_path / "out").runtime == INSTALLED[0]


@pytest.mark.parametrize(
    "more", [[], ["--profile", "imgsz=32x64", "--compute-capability", "8.9", "12.0", "--precision", "fp16"]], ids=len
)
def test_the_rebuild_command_builds_the_same(folder: Path, more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(folder / "assigner.onnx", "--runtime", "tensorrt-rtx", *WORDS, *more) == 0
    first = only_engine(folder)
    for path in folder.glob("*.engine*"):
        path.unlink()
    monkeypatch.chdir(folder)
    assert cli.main(shlex.split(first.rebuild_command)[2:]) == 0
    again = only_engine(folder)
    assert replace(again, sha256=first.sha256, build_seconds=first.build_seconds) == first


def test_quiet_and_verbose(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / "assigner.onnx"
    assert run(model, "--runtime", "tensorrt-rtx", "--quiet", *WORDS) == 0
    assert capsys.readouterr().err == ""
    assert run(model, "--runtime", "tensorrt-rtx", "--quiet", "--verbose", *WORDS) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("TensorRT: ") for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--profile", "B=0"], "error: profile word 'B=0'"),
        (["--runtime", "tensorrt-rtx", "--profile", "C=3"], "error: loss has no axis C"),
        (["--runtime", "tensorrt-rtx", "--compute-capability", "9.0"], "error: compute capability '9.0' is unknown"),
    ],
)
def test_unusable_words_end_with_2(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder / "loss.onnx", *words) == 2
    assert message in capsys.readouterr().err
    assert list(folder.glob("*.engine*")) == []


def test_a_folder_that_cannot_be_made_ends_with_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "loss.json" / "engines"
    assert run(folder / "assigner.onnx", "--runtime", "tensorrt-rtx", "--quiet", "--out", out, *WORDS) == 2
    assert f"Not a directory: '{out}'" in capsys.readouterr().err


def test_a_failed_build_ends_with_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--runtime", "tensorrt-rtx", "--compute-capability", "7.5"]
    assert run(folder / "loss.onnx", *words) == 1
    assert "error: compute capability 7.5 has no float32 matrix products" in capsys.readouterr().err
    assert list(folder.glob("*.engine*")) == []


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_command_ends_with_130(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = progress.BuildWatch.start

    def interrupted(self: progress.BuildWatch, name: str, parent: str | None, steps: int) -> None:
        if parent is None:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        start(self, name, parent, steps)

    monkeypatch.setattr(progress.BuildWatch, "start", interrupted)
    assert run(folder / "loss.onnx", "--runtime", "tensorrt-rtx") == 130
    assert capsys.readouterr().err.endswith("error: interrupted\n")
    assert list(folder.glob("*.engine*")) == []


def test_a_timing_cache_is_reported_as_unused_with_tensorrt_rtx(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "timings"
    words = ["--runtime", "tensorrt-rtx", "--quiet", "--timing-cache", str(cache)]
    # Using the cache would fail here, because it is deprecated in TensorRT-RTX and warnings are errors in tests.
    assert run(folder / "assigner.onnx", *words, *WORDS) == 0
    assert capsys.readouterr().err == f"note: tensorrt-rtx keeps no timings, {cache} is not used\n"
    assert not cache.exists()


@pytest.mark.parametrize("runtime", INSTALLED)
def test_timings_are_written_atomically_and_read_again(tmp_path: Path, runtime: str) -> None:
    # TensorRT-RTX still has the calls, with an empty cache; TensorRT needs a GPU to measure.
    library = load_library(runtime)
    builder = library.Builder(make_logger(library, BuildLog()))
    path = tmp_path / "new" / "timings"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for before in (None, b"of another version"):
            if before:
                path.write_bytes(before)
            config = builder.create_builder_config()
            use_timings(config, path)
            keep_timings(config, path)
            kept = path.read_bytes()
            assert kept != before
            use_timings(builder.create_builder_config(), path)
    assert [found.name for found in path.parent.iterdir()] == ["timings"]
