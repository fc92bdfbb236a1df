"""The models being served: finding them, bringing them up. Knows no HTTP and no bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from export.contract import find_contracts
from serve.engine.catalogue import Catalogue
from serve.engine.job_queue import BatchLimits
from serve.engine.model import Model
from serve.engine.runners.choice import RunnerOptions, choose
from serve.tensors.grid import strides_of

DEFAULTS = RunnerOptions()
ALONE = BatchLimits()
logger = logging.getLogger("serve")


class Registry(Catalogue[Model]):
    """Models that are computed in this process."""

    async def load(self, on_loaded: Callable[[Model], None] | None = None) -> None:
        """Bring all models up, one after the other.

        Args:
            on_loaded: Told of each.
        """
        for model in self.models.values():
            await model.load()
            logger.info("model %s is ready", model.contract.name)
            if on_loaded is not None:
                on_loaded(model)

    def close(self) -> None:
        """Stop all models."""
        for model in self.models.values():
            model.close()


def open_artifacts(folder: Path, options: RunnerOptions = DEFAULTS, limits: BatchLimits = ALONE) -> Registry:
    """Find the models of a folder and the runners that each may get; nothing is loaded yet.

    Args:
        folder: Contracts and model files.
        options: What is to run them.
        limits: How far requests are put together.

    Raises:
        ContractError: The folder has no usable contract, a file is missing or damaged, or an engine was asked for that
            is not there.
        ValueError: The engine does not run on the device.
    """
    models = []
    for path, contract in find_contracts(folder):
        strides_of(contract)  # refused now rather than in a request
        models.append(Model(contract, choose(path, contract, options), limits))
    return Registry(models)
