"""The registry of served models, as the HTTP layer sees them, wherever they are computed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.errors import BadRequestError, ModelFailedError, NotFoundError, NotReadyError
from yolo_assigner.serve.inference.batching import BatchLimits
from yolo_assigner.serve.inference.stats import ModelStats

VERSION = "1"
RELOAD = "POST /v2/repository/models/NAME/load, or SIGHUP for all"
logger = logging.getLogger("serve")


class ModelInfo(Protocol):
    """What the HTTP layer knows of a model.

    Attributes:
        contract: Inputs, outputs and hyper-parameters.
        stats: Counters since the server started.
        limits: Limits of dynamic batching.
    """

    contract: Contract
    stats: ModelStats
    limits: BatchLimits

    @property
    def ready(self) -> bool:
        """Whether requests can be answered now."""

    @property
    def platform(self) -> str:
        """Triton's name of the runtime; empty until a runner is chosen."""

    @property
    def dynamic_batching(self) -> bool:
        """Whether concurrent requests may be computed in one call."""


AnyModel = TypeVar("AnyModel", bound=ModelInfo)
AnyModel_co = TypeVar("AnyModel_co", bound=ModelInfo, covariant=True)


class ModelRegistry(Generic[AnyModel_co]):
    """All models by name.

    Args:
        models: In the order of their names.
        failures: As the attribute.
        find_names: Names the models that can be loaded now, served yet or not.

    Attributes:
        models: Models with a readable contract, including those that failed to load. The mapping is replaced, never
            changed, so that other threads may read it.
        failures: Why models could not be loaded, by name. Reloading a model tries again.
    """

    def __init__(
        self,
        models: Sequence[AnyModel_co],
        failures: Mapping[str, str] | None = None,
        find_names: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.models = {model.contract.name: model for model in models}
        self.failures = dict(failures or {})
        self._find_names = find_names
        self._watchers: list[Callable[[AnyModel_co], None]] = []

    def names(self) -> set[str]:
        """All models that can be reloaded: those being served, and new ones among the artifacts."""
        return {*self.models, *self.failures, *self._find_names()}

    def watch(self, callback: Callable[[AnyModel_co], None]) -> None:
        """Call a function with every model, now and whenever one is replaced or added."""
        self._watchers.append(callback)
        for model in self.models.values():
            callback(model)

    @property
    def usable(self) -> list[AnyModel_co]:
        """Models that are loaded or are still being loaded, by name."""
        return [model for name, model in self.models.items() if name not in self.failures]

    @property
    def ready(self) -> bool:
        """Whether at least one model is loaded, and none is still being loaded."""
        usable = self.usable
        return bool(usable) and all(model.ready for model in usable)

    def fail(self, name: str, reason: str) -> None:
        """Mark a model as failed and log the reason."""
        self.failures = {**self.failures, name: reason}
        log_failure(name, reason)

    def find(self, name: str, version: str | None = None) -> AnyModel_co:
        """Look a model up.

        Raises:
            NotFoundError: No model has that name and version.
            ModelFailedError: The model could not be loaded.
        """
        if name in self.failures:
            raise ModelFailedError(
                f"model {name!r} cannot be loaded: {self.failures[name]}; once it is mended, reload it: {RELOAD}"
            )
        model = self.models.get(name)
        if model is None:
            raise NotFoundError(f"no model {name!r}; this server has {', '.join(self.models)}")
        if version not in (None, VERSION):
            raise NotFoundError(f"model {name!r} has no version {version!r}, only {VERSION!r}")
        return model

    def of_kind(self, kind: str) -> list[AnyModel_co]:
        """Usable models of one kind, by name."""
        return [model for model in self.usable if model.contract.kind == kind]

    def some(self, what: str, fits: Callable[[Contract], bool]) -> list[AnyModel_co]:
        """Select usable models by their contracts, at least one, ordered by name.

        Args:
            what: Describes the selection in errors.
            fits: Whether a contract belongs to the selection.

        Raises:
            ModelFailedError: No usable model fits, but one that failed to load does or might.
            NotFoundError: No model fits.
        """
        models = [model for model in self.usable if fits(model.contract)]
        if models:
            return models
        failed = [name for name in self.failures if name not in self.models or fits(self.models[name].contract)]
        if failed:
            reasons = "; ".join(f"{name}: {self.failures[name]}" for name in failed)
            raise ModelFailedError(f"this server has no model of {what} that can be loaded ({reasons})")
        raise NotFoundError(f"this server has no model of {what}; export one with `yolo-assigner export onnx`")


class MutableModelRegistry(ModelRegistry[AnyModel]):
    """A registry whose owner replaces models; everyone else gets it as a :class:`ModelRegistry`."""

    def put(self, model: AnyModel) -> None:
        """Replace the model of the same name, keeping its statistics, or add one."""
        name = model.contract.name
        if name in self.models:
            model.stats = self.models[name].stats
        self.models = dict(sorted({**self.models, name: model}.items()))
        self.failures = {other: reason for other, reason in self.failures.items() if other != name}
        for callback in self._watchers:
            callback(model)


def check_loaded(registry: ModelRegistry[ModelInfo], name: str | None = None) -> None:
    """Check that one model, or with None the whole registry, is loaded.

    Raises:
        NotReadyError: Loading has not finished.
        ModelFailedError: The model could not be loaded. With None, failed models are ignored: the others can be used.
    """
    ready = registry.ready if name is None else registry.find(name).ready
    if not ready:
        what = "models are" if name is None else f"model {name!r} is"
        raise NotReadyError(f"{what} being loaded; try again in a moment")


def reason_of(error: Exception) -> str:
    """The text of an error, or its type where it has none."""
    return str(error) or type(error).__name__


def not_loaded(registry: ModelRegistry[ModelInfo], name: str, reason: str) -> BadRequestError:
    """Make the error for a model that could not be reloaded."""
    usable = name in registry.models and name not in registry.failures
    rest = "the one that was loaded before stays in use" if usable else "it stays out of use"
    return BadRequestError(f"model {name!r} cannot be loaded: {reason}; {rest}")


def log_failure(name: str, reason: str) -> None:
    """Log that a model could not be loaded, and how to mend that."""
    logger.error("model %s cannot be loaded and is left out: %s; mend it, then reload it: %s", name, reason, RELOAD)
