"""The models being served: finding them, bringing them up, running them. Knows no HTTP and no bytes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from export.contract import Contract, TensorSpec, find_contracts
from serve.datatypes import Array
from serve.engine import Engine, OnnxRuntimeEngine
from serve.errors import InferenceError, NotFoundError, NotReadyError
from serve.grid import strides_of

VERSION = "1"
PLATFORM = "onnxruntime_onnx"
logger = logging.getLogger("serve")


class Model:
    """One model and the thread that runs it.

    Args:
        contract: What it takes and gives.
        engine: What computes it.
    """

    def __init__(self, contract: Contract, engine: Engine) -> None:
        self.contract = contract
        self.ready = False
        self._engine = engine
        # One thread of its own: calls queue up here and never in a pool that others need.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"engine-{contract.name}")

    async def load(self) -> None:
        """Bring the engine up and run it once on tiny inputs, with and without the heavy outputs."""
        await asyncio.get_running_loop().run_in_executor(self._worker, self._warm_up)
        self.ready = True

    def _warm_up(self) -> None:
        self._engine.load()
        inputs = tiny_inputs(self.contract)
        self._engine.infer(inputs, self.contract.default_outputs)
        self._engine.infer(inputs, [spec.name for spec in self.contract.outputs])

    async def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute outputs.

        Args:
            inputs: As :func:`serve.validate.check_inputs` returns them.
            outputs: Names that exist.

        Raises:
            NotReadyError: The model is not loaded yet.
            InferenceError: The engine failed.
        """
        if not self.ready:
            raise NotReadyError(f"model {self.contract.name!r} is still being loaded; try again in a moment")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, self._engine.infer, inputs, outputs)
        except Exception as error:
            shapes = {name: array.shape for name, array in inputs.items()}
            logger.exception("model %s failed on inputs of shapes %s", self.contract.name, shapes)
            name, kind = self.contract.name, type(error).__name__
            raise InferenceError(f"model {name!r} failed on this input ({kind}); the server's log says why") from error

    def close(self) -> None:
        """Let the running call end and stop the thread."""
        self.ready = False
        self._worker.shutdown(wait=True, cancel_futures=True)


class Registry:
    """All models by name.

    Args:
        models: In the order of their names.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = {model.contract.name: model for model in models}

    @property
    def ready(self) -> bool:
        """Whether every model is."""
        return all(model.ready for model in self.models.values())

    def find(self, name: str, version: str | None = None) -> Model:
        """Look a model up.

        Raises:
            NotFoundError: There is none of that name and version.
        """
        model = self.models.get(name)
        if model is None:
            raise NotFoundError(f"no model {name!r}; this server has {', '.join(self.models)}")
        if version not in (None, VERSION):
            raise NotFoundError(f"model {name!r} has no version {version!r}, only {VERSION!r}")
        return model

    def of_kind(self, kind: str) -> list[Model]:
        """Models of one kind, by name."""
        return [model for model in self.models.values() if model.contract.kind == kind]

    async def load(self) -> None:
        """Bring all models up, one after the other."""
        for model in self.models.values():
            await model.load()
            logger.info("model %s is ready", model.contract.name)

    def close(self) -> None:
        """Stop all models."""
        for model in self.models.values():
            model.close()


def open_artifacts(folder: Path, threads: int = 0) -> Registry:
    """Find the models of a folder; they are not loaded yet.

    Args:
        folder: Contracts and model files.
        threads: Threads of each engine, 0 for one per core.

    Raises:
        ContractError: The folder has no usable contract, or a file is missing or damaged.
    """
    models = []
    for path, contract in find_contracts(folder):
        strides_of(contract)  # refused now rather than in a request
        models.append(Model(contract, OnnxRuntimeEngine(path, contract.default_outputs, threads)))
    return Registry(models)


def tiny_inputs(contract: Contract) -> dict[str, Array]:
    """Zeros of the smallest shapes that make sense: one image as wide as the largest stride, one empty slot."""
    strides = strides_of(contract)
    side = max(strides)
    sizes = {"B": 1, "M": 1, "C": 1, "A": sum((side // stride) ** 2 for stride in strides)}
    for level, stride in enumerate(strides):
        sizes[f"H{level}"] = sizes[f"W{level}"] = side // stride
    return {spec.name: np.zeros(_shape(spec, sizes), spec.dtype) for spec in contract.inputs}


def _shape(spec: TensorSpec, sizes: Mapping[str, int]) -> list[int]:
    return [axis if isinstance(axis, int) else sizes.get(axis, 1) for axis in spec.axes]
