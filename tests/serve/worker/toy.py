"""A worker with toy models, which do what the first score of a request says."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tests.serve.toy_contract import CONTRACT as ASSIGNER
from yolo_assigner.export.contract import TensorSpec
from yolo_assigner.serve.inference.loading import LoadedModels
from yolo_assigner.serve.inference.local import LocalService, Setup, regions_of
from yolo_assigner.serve.inference.model import Model
from yolo_assigner.serve.process.worker import main
from yolo_assigner.serve.wire.dtypes import Array

COMMAND = (sys.executable, "-m", "tests.serve.worker.toy")
FAIL, DIE, HANG, SLOW, FORGET, HOLD = 2.0, 3.0, 4.0, 5.0, 6.0, 7.0
SLOW_SECONDS = 0.5
# Names of files in the folder of artifacts; such a file names the models that it is for, an empty one is for all.
CANNOT_LOAD, DIES_LOADING = "cannot load", "dies loading"
STARTED = "started"  # made there when a slow request or one that hangs is begun
CONTRACT = replace(
    ASSIGNER, outputs=(*ASSIGNER.outputs, TensorSpec("target_scores", "float32", ("B", "A", "C"), heavy=True))
)


class Toy:
    """Computes the sum of scores over the classes, and twice the scores."""

    platform = "toy"
    description = "numpy"
    sizes: Mapping[str, int] = {}

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name

    def load(self) -> None:
        """Fail or crash when a file of the folder says so."""
        if self._is_told_by(CANNOT_LOAD):
            raise RuntimeError("the toy is broken")
        if self._is_told_by(DIES_LOADING):
            os.kill(os.getpid(), signal.SIGSEGV)

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Do as the first score says."""
        scores = inputs["pd_scores"]
        mark = scores.flat[0]
        if mark == FAIL:
            raise RuntimeError("secret detail")
        if mark == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if mark in (HANG, SLOW):
            (self._folder / STARTED).touch()
            time.sleep(60 if mark == HANG else SLOW_SECONDS)
        if mark == HOLD:
            ctypes.PyDLL(None).sleep(60)  # which keeps the interpreter
        if mark == FORGET:
            return {}
        results = {"target_weights": scores.sum(axis=2), "target_scores": 2 * scores}
        return {name: results[name] for name in outputs}

    def close(self) -> None:
        """Do nothing."""

    def _is_told_by(self, file: str) -> bool:
        path = self._folder / file
        return path.exists() and self._name in (path.read_text().split() or [self._name])


def build(setup: Setup) -> LocalService:
    """Build a service with the toys that the setup names."""
    source = Toys(setup)
    registry = LoadedModels([source.open(name) for name in setup.models or ()], source=source)
    return LocalService(registry, regions_of(setup), setup.max_work_bytes, setup.keep_bytes)


class Toys(NamedTuple):
    """Makes toys of any name."""

    setup: Setup

    def names(self) -> set[str]:
        """Return the names that the setup has."""
        return set(self.setup.models or ())

    def open(self, name: str) -> Model:
        """Make the toy of a name."""
        return Model(replace(CONTRACT, name=name), Toy(self.setup.artifacts, name), self.setup.limits)


if __name__ == "__main__":
    main(int(sys.argv[1]), build)
