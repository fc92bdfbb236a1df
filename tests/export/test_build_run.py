"""The order of builds, and which of them run at the same time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.repository.plan import EngineTarget, OnnxTarget, Target
from yolo_assigner.export.repository.processes import Processes, Result
from yolo_assigner.export.repository.run import BUILT, FAILED, SKIPPED, Outcome, Run


class _Watched(Processes):
    """Stands for processes: engines of TensorRT need a GPU to be built, and the schedule does not."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: set[str] = set()
        self.begun: list[str] = []
        self.most: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._counting = threading.Lock()

    def build(self, target: Target, folder: Path) -> Result:
        assert folder == Path()
        runtime = target.runtime if isinstance(target, EngineTarget) else "onnx"
        self.begun.append(target.label)
        with self._counting:
            for what in (runtime, "all"):
                self._now[what] += 1
                self.most[what] = max(self.most[what], self._now[what])
        time.sleep(0.03)
        with self._counting:
            self._now.subtract((runtime, "all"))
        return Result(0.03, "it does not like it" if target.label in self.failing else "")


class _Empty:
    """Stands for a repository in which nothing is built yet."""

    folder = Path()

    def recipe(self, target: Target) -> str:
        return target.label

    def has(self, _target: Target, _recipe: str) -> bool:
        return False

    def keep(self, _target: Target, _recipe: str) -> None: ...

    def sweep(self, _target: Target) -> None: ...


@pytest.fixture
def watched() -> _Watched:
    """In place of the processes."""
    return _Watched()


def plan(models: int) -> list[Target]:
    targets: list[Target] = []
    for number in range(models):
        model = OnnxTarget(f"loss-{number}", "loss", Hyperparameters(), "dense", "fp32", None)
        targets += [model, *(EngineTarget(model, runtime, (), (), ()) for runtime in ("tensorrt", "tensorrt-rtx"))]
    return targets


def run(watched: _Watched, targets: list[Target], jobs: int) -> list[Outcome]:
    return Run(targets, _Empty(), jobs, lambda _: None, watched).build()  # type: ignore[arg-type]


def test_one_build_at_a_time_times_kernels_and_others_go_on_beside_it(watched: _Watched) -> None:
    outcomes = run(watched, plan(6), jobs=3)
    assert [outcome.state for outcome in outcomes] == [BUILT] * 18
    assert watched.most["tensorrt"] == 1
    assert watched.most["all"] == 3
    assert watched.most["tensorrt-rtx"] > 1


def test_no_engine_begins_before_its_model_is_there(watched: _Watched) -> None:
    run(watched, plan(3), jobs=4)
    for number in range(3):
        places = [place for place, label in enumerate(watched.begun) if label.startswith(f"loss-{number}.")]
        assert watched.begun[places[0]] == f"loss-{number}.onnx"


def test_what_needs_a_failed_model_is_skipped(watched: _Watched) -> None:
    watched.failing = {"loss-0.onnx", "loss-1.tensorrt.fp32.engine"}
    outcomes = run(watched, plan(2), jobs=2)
    assert [outcome.state for outcome in outcomes] == [FAILED, SKIPPED, SKIPPED, BUILT, FAILED, BUILT]
    assert outcomes[1].reason == "loss-0.onnx was not built"
