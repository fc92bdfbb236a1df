"""The models that are served, by name, as all who ask about them see them; wherever they are computed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.errors import BadRequestError, ModelFailedError, NotFoundError, NotReadyError
from yolo_assigner.serve.inference.batching import BatchLimits
from yolo_assigner.serve.inference.stats import ModelStats

VERSION = "1"
RELOAD = "POST /v2/repository/models/NAME/load, or SIGHUP for all"
logger = logging.getLogger("serve")


class ModelInfo(Protocol):
    """What is known of a model.

    Attributes:
        contract: What it takes and gives.
        stats: What it has done.
        limits: How far requests are put together.
    """

    contract: Contract
    stats: ModelStats
    limits: BatchLimits

    @property
    def ready(self) -> bool:
        """It can be used."""

    @property
    def platform(self) -> str:
        """What runs it, by Triton's names; empty while that is not decided."""

    @property
    def dynamic_batching(self) -> bool:
        """Requests are put together."""


AnyModel_co = TypeVar("AnyModel_co", bound=ModelInfo, covariant=True)


class ModelRegistry(Generic[AnyModel_co]):
    """All models by name.

    Args:
        models: In the order of their names.
        failures: As the attribute.

    Attributes:
        models: Those whose contract can be used, also when they cannot be loaded; replaced and never changed, so that
            other threads may read it.
        failures: Names of models that cannot be loaded, each with the reason. They are tried again when they are
            reloaded.
    """

    def __init__(self, models: Sequence[AnyModel_co], failures: Mapping[str, str] | None = None) -> None:
        self.models = {model.contract.name: model for model in models}
        self.failures = dict(failures or {})
        self._watchers: list[Callable[[AnyModel_co], None]] = []

    def watch(self, told: Callable[[AnyModel_co], None]) -> None:
        """Call a function with every model, now and when one is exchanged or added."""
        self._watchers.append(told)
        for model in self.models.values():
            told(model)

    def put(self, model: AnyModel_co) -> None:  # type: ignore[misc]  # a registry is written by its owner alone
        """Exchange the model of a name, or add one. Statistics go on."""
        name = model.contract.name
        if name in self.models:
            model.stats = self.models[name].stats
        self.models = dict(sorted({**self.models, name: model}.items()))
        self.failures = {other: reason for other, reason in self.failures.items() if other != name}
        for told in self._watchers:
            told(model)

    @property
    def usable(self) -> list[AnyModel_co]:
        """Models that are loaded or still may be, by name."""
        return [model for name, model in self.models.items() if name not in self.failures]

    @property
    def ready(self) -> bool:
        """Whether nothing is left to be loaded, and a model is there."""
        usable = self.usable
        return bool(usable) and all(model.ready for model in usable)

    def fail(self, name: str, reason: str) -> None:
        """Give a model up, the others stay."""
        self.failures = {**self.failures, name: reason}
        log_failure(name, reason)

    def find(self, name: str, version: str | None = None) -> AnyModel_co:
        """Look a model up.

        Raises:
            NotFoundError: There is none of that name and version.
            ModelFailedError: It cannot be loaded.
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
        """Usable models that fit, by name; at least one.

        Args:
            what: A word for them, for errors.
            fits: Judges a model by its contract.

        Raises:
            ModelFailedError: There is none, but one that cannot be loaded is or may be such a model.
            NotFoundError: There is none.
        """
        models = [model for model in self.usable if fits(model.contract)]
        if models:
            return models
        failed = [name for name in self.failures if name not in self.models or fits(self.models[name].contract)]
        if failed:
            reasons = "; ".join(f"{name}: {self.failures[name]}" for name in failed)
            raise ModelFailedError(f"this server has no model of {what} that can be loaded ({reasons})")
        raise NotFoundError(f"this server has no model of {what}; export one with `yolo-assigner export onnx`")


def check_loaded(registry: ModelRegistry[ModelInfo], name: str | None = None) -> None:
    """See that a model, or with None every one, can be used.

    Raises:
        NotReadyError: It is still being loaded.
        ModelFailedError: It cannot be loaded. Of all models that is no reason: the others can be used.
    """
    ready = registry.ready if name is None else registry.find(name).ready
    if not ready:
        what = "models are" if name is None else f"model {name!r} is"
        raise NotReadyError(f"{what} being loaded; try again in a moment")


def reason_of(error: Exception) -> str:
    """An error in words, never none."""
    return str(error) or type(error).__name__


def not_loaded(registry: ModelRegistry[ModelInfo], name: str, reason: str) -> BadRequestError:
    """The error of a model that could not be reloaded."""
    usable = name in registry.models and name not in registry.failures
    rest = "the one that was loaded before stays in use" if usable else "it stays out of use"
    return BadRequestError(f"model {name!r} cannot be loaded: {reason}; {rest}")


def log_failure(name: str, reason: str) -> None:
    """Tell the operator of a model that cannot be loaded."""
    logger.error("model %s cannot be loaded and is left out: %s; mend it, then reload it: %s", name, reason, RELOAD)
