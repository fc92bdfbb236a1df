"""Where a model is computed."""

from __future__ import annotations

import re
from typing import NamedTuple


class Device(NamedTuple):
    """A processor.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        number: Which GPU.
    """

    kind: str
    number: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.number}"


HOST = Device("cpu")


def parse_device(text: str) -> Device:
    """Read ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ValueError: It is none of them.
    """
    found = re.fullmatch(r"(cpu|cuda)|cuda:(\d{1,3})", text)
    if found is None:
        raise ValueError(f"device {text!r} is unknown; write cpu, cuda or cuda:N")
    return Device(found[1]) if found[1] else Device("cuda", int(found[2]))
