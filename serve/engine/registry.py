"""The models being served: finding them, bringing them up. Knows no HTTP and no bytes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from export.contract import ContractError, scan_contracts
from serve.engine.catalogue import Catalogue, reason_of
from serve.engine.job_queue import BatchLimits
from serve.engine.model import Model
from serve.engine.runners.choice import RunnerOptions, choose, runtimes_of
from serve.tensors.grid import strides_of

DEFAULTS = RunnerOptions()
ALONE = BatchLimits()
logger = logging.getLogger("serve")


class Registry(Catalogue[Model]):
    """Models that are computed in this process."""

    async def load(self, on_change: Callable[[Model], Awaitable[None]] | None = None) -> None:
        """Bring all models up, one after the other. One that fails is closed and does not hinder the others.

        Args:
            on_change: Waited for before each model is loaded and after it; the model says whether it is ready.

        Raises:
            Exception: No model could be loaded; the first one's reason.
        """
        errors: list[Exception] = []
        for model in self.usable:
            if on_change is not None:
                await on_change(model)
            try:
                await model.load()
            except Exception as error:
                errors.append(error)
                self.fail(model.contract.name, reason_of(error))
                logger.debug("its traceback", exc_info=True)
                model.close()
            else:
                logger.info("model %s is ready", model.contract.name)
            if on_change is not None:
                await on_change(model)
        if self.failures and not self.usable:
            raise errors[0] if errors else ContractError(next(iter(self.failures.values())))

    def keep(self, expected: Mapping[str, str], failures: Mapping[str, str]) -> None:
        """Leave only the models that callers have been told of.

        Args:
            expected: Their names and SHA-256. One that is no more there, or another now, counts as failed.
            failures: Those that are known to have failed, which are not tried again.
        """
        found, failed = self.models, self.failures
        self.models = {name: found[name] for name in expected if name in found}
        self.failures = dict(failures)
        for name, sha256 in expected.items():
            if name in failures:
                continue
            if name in failed:
                self.fail(name, failed[name])
            elif name not in found or found[name].contract.sha256 != sha256:
                self.fail(name, "its file is no more the one with which the server began")

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

    Returns:
        All models; those with an unusable contract, a missing or damaged file, or without the engine that was asked for
        are among the failures.

    Raises:
        ContractError: No model is left; the first one's reason.
        ValueError: The engine does not run on the device.
    """
    runtimes_of(options)
    found, damaged = scan_contracts(folder)
    errors: dict[str, Exception] = {**damaged}
    models = []
    for path, contract in found:
        try:
            strides_of(contract)  # refused now rather than in a request
            models.append(Model(contract, choose(path, contract, options), limits))
        except Exception as error:  # also of values that no export writes
            errors[contract.name] = error
    if not models:
        raise errors[min(errors)]
    return Registry(models, {name: reason_of(errors[name]) for name in sorted(errors)})
