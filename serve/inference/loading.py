"""The models being served: finding them, bringing them up. Knows no HTTP and no bytes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from yolo_assigner.export.contract import Contract, ContractError, scan_contracts
from yolo_assigner.serve.detection.grid import strides_of
from yolo_assigner.serve.errors import NotFoundError, UnsupportedError
from yolo_assigner.serve.inference.batching import BatchLimits
from yolo_assigner.serve.inference.model import Model
from yolo_assigner.serve.inference.registry import ModelRegistry, reason_of
from yolo_assigner.serve.inference.runners.choice import RunnerOptions, choose, runtimes_of

DEFAULTS = RunnerOptions()
ALONE = BatchLimits()
logger = logging.getLogger("serve")


class Source(Protocol):
    """Where models come from."""

    def names(self) -> set[str]:
        """All that are there, usable or not."""

    def open(self, name: str) -> Model:
        """Open one model as it is there now; nothing is loaded yet.

        Raises:
            NotFoundError: It is not there.
            Exception: It is unusable.
        """


class LoadedModels(ModelRegistry[Model]):
    """Models that are computed in this process.

    Args:
        models: In the order of their names.
        failures: Of those that cannot be loaded.
        source: Where they are loaded from again; None: nowhere.
    """

    def __init__(
        self,
        models: Sequence[Model],
        failures: Mapping[str, str] | None = None,
        source: Source | None = None,
    ) -> None:
        super().__init__(models, failures)
        self._source = source
        self._calls: set[asyncio.Future[None]] = set()
        self._retiring: set[asyncio.Task[None]] = set()

    def names(self) -> set[str]:
        """All models that can be reloaded: those that are known and those that are new in the folder."""
        found = self._source.names() if self._source is not None else set()
        return {*self.models, *self.failures, *found}

    @contextmanager
    def call(self) -> Iterator[None]:
        """Keep all models of now open while a request is answered, also those that are exchanged meanwhile."""
        ended = asyncio.get_running_loop().create_future()
        self._calls.add(ended)
        try:
            yield
        finally:
            self._calls.discard(ended)
            ended.set_result(None)

    async def reload(self, name: str) -> None:
        """Load a model as its files are now beside the one in use, and exchange them between two requests.

        Requests that have begun are answered by the old one, which is closed after the last of them. When the new one
        cannot be loaded, the old one stays.

        Raises:
            NotFoundError: There is no such model among the artifacts.
            Exception: It cannot be opened or loaded.
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
        """Close a model after the calls that may use it."""
        if calls:
            await asyncio.wait(calls)
        await asyncio.to_thread(model.close)
        logger.debug("the model %s before that is closed", model.contract.name)

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

    def keep(self, expected: Collection[str], failures: Mapping[str, str]) -> None:
        """Leave only the models that callers have been told of.

        Args:
            expected: Their names. One that is no longer there counts as failed.
            failures: Those that are known to have failed, which are not tried again.
        """
        found, failed = self.models, self.failures
        self.models = {name: found[name] for name in expected if name in found}
        self.failures = dict(failures)
        for name in expected:
            if name not in failures and name not in self.models:
                self.fail(name, failed.get(name, "its contract is no longer among the artifacts"))

    def close(self) -> None:
        """Stop all models."""
        for model in self.models.values():
            model.close()


class ModelFolder(NamedTuple):
    """A folder of models and how they are opened.

    Attributes:
        path: Of the folder: contracts and model files.
        options: What is to run them.
        limits: How far requests are put together.
    """

    path: Path
    options: RunnerOptions = DEFAULTS
    limits: BatchLimits = ALONE

    def names(self) -> set[str]:
        """All models that have a contract, usable or not."""
        return names_in(self.path)

    def open(self, name: str) -> Model:
        """Open one model; nothing is loaded yet.

        Raises:
            NotFoundError: It has no contract.
            ContractError: Its contract or its file is unusable.
        """
        return self.model_of(*find_model(self.path, name))

    def model_of(self, file: Path, contract: Contract) -> Model:
        """The model of a file and its contract."""
        strides_of(contract)  # refused now rather than in a request
        return Model(contract, choose(file, contract, self.options), self.limits)


def find_model(folder: Path, name: str) -> tuple[Path, Contract]:
    """The file and the contract of one model.

    Raises:
        NotFoundError: It has no contract in the folder.
        ContractError: Its contract or its file is unusable.
    """
    found, damaged = scan_contracts(folder)
    if name in damaged:
        raise damaged[name]
    for file, contract in found:
        if contract.name == name:
            return file, contract
    names = sorted([*damaged, *(contract.name for _, contract in found)])
    raise NotFoundError(f"there is no {name}.json in {folder}, only {', '.join(names)}; export the model there")


def names_in(folder: Path) -> set[str]:
    """All models that have a contract in a folder, usable or not."""
    try:
        found, damaged = scan_contracts(folder)
    except ContractError:
        return set()
    return {*damaged, *(contract.name for _, contract in found)}


def open_artifacts(folder: Path, options: RunnerOptions = DEFAULTS, limits: BatchLimits = ALONE) -> LoadedModels:
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
    source = ModelFolder(folder, options, limits)
    for path, contract in found:
        try:
            models.append(source.model_of(path, contract))
        except Exception as error:  # also of values that no export writes
            errors[contract.name] = error
    if not models:
        raise errors[min(errors)]
    return LoadedModels(models, {name: reason_of(errors[name]) for name in sorted(errors)}, source)
