"""An engines' process with one toy model, which does what the first score says."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from export.contract import TensorSpec
from serve.compute.local import LocalService
from serve.compute.setup import Setup, regions_of
from serve.engine.model import Model
from serve.engine.registry import Registry
from serve.tensors.datatypes import Array
from serve.worker.main import main
from tests.serve.toy_contract import CONTRACT as ASSIGNER

COMMAND = (sys.executable, "-m", "tests.serve.worker.toy")
FAIL, DIE, HANG, SLOW, FORGET, HOLD = 2.0, 3.0, 4.0, 5.0, 6.0, 7.0
SLOW_SECONDS = 0.5
CANNOT_LOAD, DIES_LOADING = "cannot load", "dies loading"  # names of files in the folder of artifacts
CONTRACT = replace(
    ASSIGNER, outputs=(*ASSIGNER.outputs, TensorSpec("target_scores", "float32", ("B", "A", "C"), heavy=True))
)


class Toy:
    """Sums scores over the classes and gives twice the scores."""

    platform = "toy"
    description = "numpy"
    sizes: Mapping[str, int] = {}

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> None:
        """Do as the folder says."""
        if (self._folder / CANNOT_LOAD).exists():
            raise RuntimeError("the toy is broken")
        if (self._folder / DIES_LOADING).exists():
            os.kill(os.getpid(), signal.SIGKILL)

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Do as the first score says."""
        scores = inputs["pd_scores"]
        mark = scores.flat[0]
        if mark == FAIL:
            raise RuntimeError("secret detail")
        if mark == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if mark in (HANG, SLOW):
            time.sleep(60 if mark == HANG else SLOW_SECONDS)
        if mark == HOLD:
            ctypes.PyDLL(None).sleep(60)  # which keeps the interpreter
        if mark == FORGET:
            return {}
        results = {"target_weights": scores.sum(axis=2), "target_scores": 2 * scores}
        return {name: results[name] for name in outputs}

    def close(self) -> None:
        """Nothing."""


def build(setup: Setup) -> LocalService:
    """The service with the toy."""
    model = Model(CONTRACT, Toy(setup.artifacts), setup.limits)
    return LocalService(Registry([model]), regions_of(setup), setup.max_work_bytes, setup.keep_bytes)


if __name__ == "__main__":
    main(int(sys.argv[1]), build)
