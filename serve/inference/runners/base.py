"""The runner protocol, its errors, and devices."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from yolo_assigner.serve.wire.dtypes import Array  # without numpy, the health check takes half the time

# Devices by the name of the engine that runs on them.
DEVICES = {
    "tensorrt": ("cuda",),
    "tensorrt-rtx": ("cuda",),
    "onnxruntime": ("cuda", "cpu"),
    "onnxruntime-tensorrt": ("cuda",),
    "torch": ("cuda", "cpu"),
}
ENGINES = ("auto", *DEVICES)


class RunnerError(RuntimeError):
    """A runner cannot be used on this machine or with this file; the text names the remedy."""


class UnfitRequestError(ValueError):
    """Inputs fit the contract but not the sizes that the engine was built for; the text is for the caller."""


class Runner(Protocol):
    """Computes one model. Called from one thread at a time."""

    @property
    def platform(self) -> str:
        """Triton's name of the runtime where it has one, for example ``onnxruntime_onnx``."""

    @property
    def description(self) -> str:
        """Library, version and device, for the log."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Sizes of axes by their letters, with which the warm-up calls the runner; other axes may have any size."""

    def load(self) -> None:
        """Prepare for :meth:`infer`; may take long.

        Raises:
            RunnerError: The runner cannot be used on this machine.
            Exception: The library refuses the file.
        """

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute the named outputs.

        Args:
            inputs: All inputs of the model, in its types.
            outputs: Names of outputs.

        Returns:
            One array per name, in the contract's types, owned by the caller.

        Raises:
            UnfitRequestError: The engine does not take inputs of these sizes.
        """

    def close(self) -> None:
        """Release memory and device; the last call. May come without :meth:`load`."""


class Device(NamedTuple):
    """A processor.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        number: Index of the GPU.
    """

    kind: str
    number: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.number}"


HOST = Device("cpu")


def parse_device(text: str) -> Device:
    """Read ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ValueError: The text is none of them.
    """
    found = re.fullmatch(r"(cpu|cuda)|cuda:(\d{1,3})", text)
    if found is None:
        raise ValueError(f"device {text!r} is unknown; write cpu, cuda or cuda:N")
    return Device(found[1]) if found[1] else Device("cuda", int(found[2]))
