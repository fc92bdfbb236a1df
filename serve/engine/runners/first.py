"""The first of several runners that really runs its model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.engine.runners.base import Runner, RunnerError
from yolo_assigner.serve.engine.runners.trial import try_out
from yolo_assigner.serve.tensors.datatypes import Array

logger = logging.getLogger("serve")


class Candidate(NamedTuple):
    """A runner that may be taken.

    Attributes:
        name: For the log.
        make: Makes it, not yet loaded; raises when that is impossible.
    """

    name: str
    make: Callable[[], Runner]


class FirstThatLoads:
    """The first of several runners that loads and runs. Nothing is decided before :meth:`load`.

    Args:
        contract: Of the model.
        candidates: Best first, at least one.
    """

    def __init__(self, contract: Contract, candidates: Sequence[Candidate]) -> None:
        self._contract = contract
        self._candidates = candidates
        self._chosen: Runner | None = None

    @property
    def platform(self) -> str:
        """That of the chosen runner, empty before there is one."""
        return self._chosen.platform if self._chosen else ""

    @property
    def description(self) -> str:
        """That of the chosen runner, else what may be chosen."""
        return self._chosen.description if self._chosen else " or ".join(name for name, _ in self._candidates)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Those of the chosen runner."""
        return self._chosen.sizes if self._chosen else {}

    def load(self) -> None:
        """Try one after the other.

        Raises:
            Exception: That of the only candidate.
            RunnerError: There are several, and none can be used; the text has every reason.
        """
        name, reasons = self._contract.name, []
        for candidate in self._candidates:
            try:
                runner = candidate.make()
                try_out(runner, self._contract)
            except Exception as error:
                if len(self._candidates) == 1:
                    raise
                logger.info("model %s: %s is not taken: %s", name, candidate.name, error)
                reasons.append(f"{candidate.name}: {error}")
            else:
                logger.info("model %s: %s is taken", name, runner.description)
                self._chosen = runner
                return
        raise RunnerError(f"nothing runs model {name!r}: {'; '.join(reasons)}")

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """As the chosen runner."""
        assert self._chosen is not None  # noqa: S101 - for the type checker
        return self._chosen.infer(inputs, outputs)

    def close(self) -> None:
        """Close the chosen runner."""
        if self._chosen is not None:
            self._chosen.close()
        self._chosen = None
