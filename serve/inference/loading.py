"""Loads, reloads and closes the models that are computed in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from yolo_assigner.export.contract import Contract, ContractError, contract_paths, open_contract, scan_contracts
from yolo_assigner.serve.detection.grid import strides_of
from yolo_assigner.serve.errors import NotFoundError, UnsupportedError
from yolo_assigner.serve.inference.batching import BatchLimits
from yolo_assigner.serve.inference.model import Model
from yolo_assigner.serve.inference.registry import MutableModelRegistry, reason_of
from yolo_assigner.serve.inference.runners.choice import RunnerOptions, choose, runtimes_of

DEFAULTS = RunnerOptions()
NO_BATCHING = BatchLimits()
logger = logging.getLogger("serve")


class ModelSource(Protocol):
    """Where models are loaded from."""

    def names(self) -> set[str]:
        """Names of all models, usable or not."""

    def open(self, name: str) -> Model:
        """Open the current files of one model, without loading them.

        Raises:
            NotFoundError: No model has that name.
            Exception: Its files are unusable.
        """


class LoadedModels(MutableModelRegistry[Model]):
    """The registry of models that are computed in this process.

    Args:
        models: In the order of their names.
        failures: Why further models cannot be loaded, by name.
        source: Where models are reloaded from; None: they cannot be.
    """

    def __init__(
        self,
        models: Sequence[Model],
        failures: Mapping[str, str] | None = None,
        source: ModelSource | None = None,
    ) -> None:
        super().__init__(models, failures, tuple if source is None else source.names)
        self._source = source
        self._calls: set[asyncio.Future[None]] = set()
        self._retiring: set[asyncio.Task[None]] = set()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Keep the current models open during a request, even those that are replaced meanwhile."""
        ended = asyncio.get_running_loop().create_future()
        self._calls.add(ended)
        try:
            yield
        finally:
            self._calls.discard(ended)
            ended.set_result(None)

    async def load(self, on_change: Callable[[Model], Awaitable[None]] | None = None) -> None:
        """Load all models one by one. A model that fails is closed; the others are loaded all the same.

        Args:
            on_change: Awaited before and after each model is loaded; the model's ``ready`` tells which.

        Raises:
            Exception: No model could be loaded; that of the first one.
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

    async def reload(self, name: str) -> None:
        """Load the current files of a model and replace the one in use.

        Requests that have begun are answered by the old model, which is closed after the last of them. When the new
        one cannot be loaded, the old one stays.

        Raises:
            NotFoundError: The source has no such model.
            UnsupportedError: The models have no source.
            Exception: The model cannot be opened or loaded.
        """
        if self._source is None:
            raise UnsupportedError(f"model {name!r} was not loaded from a file")
        model = await asyncio.to_thread(self._source.open, name)
        try:
            await model.load()
        except BaseException:
            await asyncio.to_thread(model.close)
            raise
        old = self.models.get(name)
        self.put(model)
        logger.info("model %s is reloaded", name)
        if old is not None:
            retiring = asyncio.create_task(self._retire(old, set(self._calls)))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

    async def _retire(self, model: Model, calls: Collection[asyncio.Future[None]]) -> None:
        """Close a model after the requests that may use it."""
        if calls:
            await asyncio.wait(calls)
        await asyncio.to_thread(model.close)
        logger.debug("the model %s before that is closed", model.contract.name)

    def keep(self, expected: Collection[str], failures: Mapping[str, str]) -> None:
        """Drop all models but those that an earlier process has announced to callers.

        Args:
            expected: Names of the models to keep. One that is not there counts as failed.
            failures: Models that are known to fail, with reasons; they are not tried again.
        """
        found, failed = self.models, self.failures
        self.models = {name: found[name] for name in expected if name in found}
        self.failures = dict(failures)
        for name in expected:
            if name not in failures and name not in self.models:
                self.fail(name, failed.get(name, "its contract is no longer among the artifacts"))

    def close(self) -> None:
        """Close all models."""
        for model in self.models.values():
            model.close()


class ModelFolder(NamedTuple):
    """A folder of contracts and model files, and how to run them.

    Attributes:
        path: The folder.
        options: Engine, device and threads.
        limits: Limits of dynamic batching.
    """

    path: Path
    options: RunnerOptions = DEFAULTS
    limits: BatchLimits = NO_BATCHING

    def names(self) -> set[str]:
        """Names of all models that have a contract, usable or not."""
        return names_in(self.path)

    def open(self, name: str) -> Model:
        """Open one model, without loading it.

        Raises:
            NotFoundError: The model has no contract.
            ContractError: Its contract or its file is unusable.
        """
        return self.model_of(*find_model(self.path, name))

    def model_of(self, file: Path, contract: Contract) -> Model:
        """Make the model of a file and its contract."""
        strides_of(contract)  # refused now rather than in a request
        return Model(contract, choose(file, contract, self.options), self.limits)


def find_model(folder: Path, name: str) -> tuple[Path, Contract]:
    """Find the file and the contract of one model; files of other models are not read.

    Raises:
        NotFoundError: The folder has no contract of that name.
        ContractError: The contract or its file is unusable, or the folder has no contract at all.
    """
    paths = contract_paths(folder)
    if name not in paths:
        raise NotFoundError(f"there is no {name}.json in {folder}, only {', '.join(paths)}; export the model there")
    return open_contract(paths[name])


def names_in(folder: Path) -> set[str]:
    """Names of all models that have a contract in a folder, usable or not."""
    try:
        return set(contract_paths(folder))
    except ContractError:
        return set()


def open_artifacts(folder: Path, options: RunnerOptions = DEFAULTS, limits: BatchLimits = NO_BATCHING) -> LoadedModels:
    """Find the models of a folder and the runners that each may get, without loading them.

    Args:
        folder: Contracts and model files.
        options: Engine, device and threads.
        limits: Limits of dynamic batching.

    Returns:
        All models. Those with an unusable contract, a missing or damaged file, or without the engine that was asked
        for are among the failures.

    Raises:
        ContractError: No model is left; that of the first one.
        ValueError: The engine does not run on the device.
    """
    runtimes_of(options)
    found, damaged = scan_contracts(folder)
    errors: dict[str, Exception] = {**damaged}
    models = []
    source = ModelFolder(folder, options, limits)
    for path, contract in found:
        try:
            models.append(source.model_of(path, contract))
        except Exception as error:  # also of values that no export writes
            errors[contract.name] = error
    if not models:
        raise errors[min(errors)]
    return LoadedModels(models, {name: reason_of(errors[name]) for name in sorted(errors)}, source)
