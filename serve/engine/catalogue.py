"""The models that are served, by name, as all who ask about them see them; wherever they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from export.contract import Contract
from serve.engine.job_queue import BatchLimits
from serve.engine.stats import ModelStats
from serve.errors import NotFoundError, NotReadyError

VERSION = "1"


class Known(Protocol):
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
    def merges(self) -> bool:
        """Requests are put together."""


AnyModel_co = TypeVar("AnyModel_co", bound=Known, covariant=True)


class Catalogue(Generic[AnyModel_co]):
    """All models by name.

    Args:
        models: In the order of their names.
    """

    def __init__(self, models: Sequence[AnyModel_co]) -> None:
        self.models = {model.contract.name: model for model in models}

    @property
    def ready(self) -> bool:
        """Whether every model is."""
        return all(model.ready for model in self.models.values())

    def find(self, name: str, version: str | None = None) -> AnyModel_co:
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

    def of_kind(self, kind: str) -> list[AnyModel_co]:
        """Models of one kind, by name."""
        return [model for model in self.models.values() if model.contract.kind == kind]


def check_loaded(catalogue: Catalogue[Known], name: str | None = None) -> None:
    """See that a model, or with None every one, can be used.

    Raises:
        NotReadyError: It is still being loaded.
    """
    ready = catalogue.ready if name is None else catalogue.find(name).ready
    if not ready:
        what = "models are" if name is None else f"model {name!r} is"
        raise NotReadyError(f"{what} being loaded; try again in a moment")
