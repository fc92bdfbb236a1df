"""Hyper-parameters as plain numbers: what is accepted where the meaning is plain, and what is refused.

Imports the standard library only. Raises nothing but ``ValueError``: each text names the value and what is expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

GAINS = ("box", "cls", "dfl")
MOST = 2**31 - 1


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """An integer; 10.0 is one, also as a number of numpy or a tensor of one element.

    Raises:
        ValueError: It is no whole number, too small, or beyond all that can be counted.
    """
    number = _plain(value)
    if not _is_finite(number) or number != int(number) or number < least:
        raise ValueError(f"{name} is {value!r}, expected a whole number, at least {least}")
    if number > MOST:
        raise ValueError(f"{name} is {value!r}, expected at most {MOST}")
    return int(number)


def real_number(name: str, value: Any, *, positive: bool = False) -> float:
    """A finite number that is not negative, also as a number of numpy or a tensor of one element.

    Args:
        name: What to call it in the error.
        value: Anything.
        positive: Whether 0 is refused, too.

    Raises:
        ValueError: It is something else.
    """
    number = _plain(value)
    if not _is_finite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name} is {value!r}, expected a finite number, {'above 0' if positive else '0 or more'}")
    return float(number)


def stride_list(name: str, value: Any) -> tuple[float, ...]:
    """Pixels per cell of each level, from any sequence, array or tensor.

    Raises:
        ValueError: It is none, is empty, or one of the strides is not above 0.
    """
    items = _items(value)
    if not items:
        raise ValueError(f"{name} is {value!r}, expected a list of pixels per cell, one for each level, as 8, 16, 32")
    return tuple(real_number(f"{name}[{place}]", item, positive=True) for place, item in enumerate(items))


def gain_values(value: Any) -> tuple[float, ...]:
    """Weights of box, cls and dfl, from a mapping by these names or a sequence in this order.

    Raises:
        ValueError: There are others, more or fewer, or one is negative or not finite.
    """
    if isinstance(value, Mapping):
        if set(value) != set(GAINS):
            names = ", ".join(map(str, value)) or "nothing"
            raise ValueError(f"gains has {names}, expected {', '.join(GAINS)}")
        items: Sequence[Any] | None = [value[name] for name in GAINS]
    else:
        items = _items(value)
    if items is None or len(items) != len(GAINS):
        raise ValueError(f"gains is {value!r}, expected three numbers, {', '.join(GAINS)}, or a dict of these")
    return tuple(real_number(f"gain {name}", item) for name, item in zip(GAINS, items, strict=True))


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """A word out of a few.

    Raises:
        ValueError: It is another.
    """
    words = tuple(choices)
    if value not in words:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(words)}")
    return str(value)


def default_min_box_side(strides: Sequence[float]) -> float:
    """``min_box_side`` as release 8.4 takes it from the strides: the second one, or the only one."""
    return strides[min(1, len(strides) - 1)]


def is_sequence(value: Any) -> bool:
    """Whether a value is several numbers and not one."""
    return _items(value) is not None


def _items(value: Any) -> Sequence[Any] | None:
    """The entries of a list, tuple, array or tensor; None of anything else."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None


def _plain(value: Any) -> Any:
    """The Python number in an array or tensor of one element."""
    return value.item() if hasattr(value, "item") and math.prod(value.shape) == 1 else value


def _is_finite(value: Any) -> bool:
    """Whether a value is a finite number; booleans are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
