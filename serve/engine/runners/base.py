"""The protocol of everything that runs a model, and what can go wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from yolo_assigner.serve.tensors.datatypes import Array


class RunnerError(RuntimeError):
    """A runner cannot be used on this machine or with this file; the text names the remedy."""


class UnfitRequestError(ValueError):
    """Inputs that fit the contract but not the sizes that an engine was built for; the text is for the caller."""


class Runner(Protocol):
    """A model that can be run. Called from one thread at a time."""

    @property
    def platform(self) -> str:
        """For the protocol's metadata: Triton's name where it has one, for example ``onnxruntime_onnx``."""

    @property
    def description(self) -> str:
        """Library, version and device, for the log."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Sizes of axes, by their letters, with which it can be tried; an axis that is not named may have any."""

    def load(self) -> None:
        """Make ready for :meth:`infer`; may take long.

        Raises:
            RunnerError: It cannot be used here.
            Exception: Whatever the library raises on a bad file.
        """

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute the named outputs.

        Args:
            inputs: All inputs of the model, in its types.
            outputs: Names of outputs.

        Returns:
            One array per name, in the contract's types, owned by the caller.

        Raises:
            UnfitRequestError: It takes no inputs of these sizes.
        """

    def close(self) -> None:
        """Give back memory and device; nothing may be called afterwards. Does no harm when never loaded."""
