"""Display of a build's progress, and cancelling a build."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.export.engines import INSTALLED, SMALL
from yolo_assigner.export.contract import write_atomically
from yolo_assigner.export.to_tensorrt.build import build_engine
from yolo_assigner.export.to_tensorrt.log import BuildLog
from yolo_assigner.export.to_tensorrt.progress import BuildWatch, PhaseLines, TerminalLine, progress_display


class Recorder:
    """Display that records what is shown and calls ``act`` the first time."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self.shown: list[tuple[tuple[str, ...], float]] = []
        self._act = act

    def show(self, phases: Sequence[str], share: float) -> None:
        """Record the arguments."""
        self.shown.append((tuple(phases), share))
        if len(self.shown) == 1:
            self._act()


def interrupt() -> None:
    """Send SIGINT, as a terminal does at Ctrl-C."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.mark.parametrize("runtime", INSTALLED)
def test_progress_grows_from_nothing_to_nearly_all(dense_dir: Path, tmp_path: Path, runtime: str) -> None:
    progress = Recorder()
    build_engine(dense_dir / "assigner.onnx", tmp_path, runtime=runtime, profiles=[SMALL], progress=progress)
    shares = [share for _, share in progress.shown]
    assert shares == sorted(shares)
    assert shares[0] == 0
    # The last step is only reported as the end of the outermost phase.
    assert 0.8 < shares[-1] <= 1
    assert len({phases[0] for phases, _ in progress.shown}) == 1
    assert max(len(phases) for phases, _ in progress.shown) > 2


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("runtime", INSTALLED)
@pytest.mark.parametrize("before", [True, False], ids=["over an engine", "into nothing"])
def test_an_interrupted_build_leaves_all_as_it_was(dense_dir: Path, tmp_path: Path, runtime: str, before: bool) -> None:
    model = dense_dir / "loss.onnx"
    if before:
        build_engine(model, tmp_path, runtime=runtime, profiles=[SMALL])
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    progress = Recorder(interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_engine(model, tmp_path, runtime=runtime, progress=progress)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert progress.shown[-1][1] < 0.8  # it ended early: a whole build gets further, as the previous test shows


def test_a_display_that_fails_ends_the_build(dense_dir: Path, tmp_path: Path) -> None:
    def fail() -> None:
        raise BrokenPipeError("the reader has gone")

    progress = Recorder(fail)
    with pytest.raises(BrokenPipeError, match="the reader has gone"):
        build_engine(dense_dir / "assigner.onnx", tmp_path, runtime="tensorrt-rtx", profiles=[SMALL], progress=progress)
    assert len(progress.shown) == 1
    assert list(tmp_path.iterdir()) == []


def test_warnings_are_passed_on(dense_dir: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    build_engine(dense_dir / "assigner.onnx", tmp_path, runtime="tensorrt-rtx", profiles=[SMALL], warn=warnings.append)
    assert any("gt_labels" in text for text in warnings)


def test_repeated_messages_are_reported_and_quoted_once() -> None:
    warnings: list[str] = []
    log = BuildLog(warnings.append)
    for _ in range(2):
        log.add_warning("no\n  good")
        log.add_error("worse")
    assert warnings == ["no\n  good"]
    assert str(log.failure("failed:")) == "failed:\n  worse\nTensorRT warned before:\n  no good"


def test_a_failed_atomic_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    with pytest.raises(OSError, match="engine"):
        write_atomically(tmp_path / "engine", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_shares_of_nested_phases() -> None:
    progress = Recorder()
    watch = BuildWatch(progress)
    watch.start("whole", None, 4)
    watch.start("part", "whole", 2)
    assert watch.step("part", 0)
    watch.finish("part")
    watch.step("whole", 0)
    # The part is a quarter of the whole, and half of it was done; its end does not reduce the share.
    assert progress.shown == [
        (("whole",), 0.0),
        (("whole", "part"), 0.0),
        (("whole", "part"), 0.125),
        (("whole",), 0.25),
    ]
    watch.cancel()
    assert not watch.step("whole", 1)


class Terminal(io.StringIO):
    """Stream that pretends to be a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def test_a_terminal_gets_one_line_that_is_rewritten_and_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    display = progress_display(stream)
    assert isinstance(display, TerminalLine)
    for share in (0.1, 0.1, 0.25):
        display.show(("whole", "part with a long name"), share)
    display.close()
    # Lines are cut at 19 characters because a full line would wrap; an unchanged line is not written again.
    assert stream.getvalue() == "\r\x1b[K 10%  part with a l\r\x1b[K 25%  part with a l\r\x1b[K"


def test_a_file_gets_a_line_for_each_part_of_the_whole() -> None:
    stream = io.StringIO()
    display = progress_display(stream)
    assert isinstance(display, PhaseLines)
    for phases in (["whole"], ["whole", "one"], ["whole", "one", "inner"], ["whole", "two"]):
        display.show(phases, 0.5)
    display.close()
    assert stream.getvalue() == " 50%  one\n 50%  two\n"
