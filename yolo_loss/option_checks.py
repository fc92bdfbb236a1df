"""Checks that convert hyper-parameters to Python numbers, from any type whose meaning is clear.

This module imports the standard library only. Every error is a ``ValueError`` whose text names the value and what is
expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

GAINS = ("box", "cls", "dfl")
MAX_COUNT = 2**31 - 1


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Convert to an integer; 10.0 is one, also as a scalar of numpy or a tensor of one element.

    Raises:
        ValueError: The value is not a whole number, too small, or too large for a 32-bit integer.
    """
    number = _plain(value)
    if not _is_finite(number) or number != int(number) or number < least:
        raise ValueError(f"{name} is {value!r}, expected a whole number, at least {least}")
    if number > MAX_COUNT:
        raise ValueError(f"{name} is {value!r}, expected at most {MAX_COUNT}")
    return int(number)


def real_number(name: str, value: Any, *, positive: bool = False) -> float:
    """Convert to a finite number that is not negative, also from a scalar of numpy or a tensor of one element.

    Args:
        name: The value's name in the error.
        value: Anything.
        positive: Whether 0 is refused, too.

    Raises:
        ValueError: The value is not such a number.
    """
    number = _plain(value)
    if not _is_finite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name} is {value!r}, expected a finite number, {'above 0' if positive else '0 or more'}")
    return float(number)


def stride_list(name: str, value: Any) -> tuple[float, ...]:
    """Convert any sequence, array or tensor to strides, in pixels per cell of each level.

    Raises:
        ValueError: The value is not a sequence, is empty, or a stride is not above 0.
    """
    items = _items(value)
    if not items:
        raise ValueError(f"{name} is {value!r}, expected a list of pixels per cell, one for each level, as 8, 16, 32")
    return tuple(real_number(f"{name}[{place}]", item, positive=True) for place, item in enumerate(items))


def gain_values(value: Any) -> tuple[float, ...]:
    """Convert to the weights of box, cls and dfl, from a mapping by these names or a sequence in this order.

    Raises:
        ValueError: Names or their number differ, or a weight is negative or not finite.
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


def class_weight_list(name: str, value: Any, classes: int) -> tuple[float, ...]:
    """Convert any sequence, array or tensor to the weights of the classes.

    Raises:
        ValueError: There is not one number for each class, or one is negative or not finite.
    """
    items = _items(value)
    if items is None or len(items) != classes:
        count = "no list" if items is None else f"{len(items)} numbers"
        raise ValueError(f"{name} is {count}, expected {classes} numbers, one for each class")
    return tuple(real_number(f"{name}[{place}]", item) for place, item in enumerate(items))


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """Check that a value is one of a few words.

    Raises:
        ValueError: It is not.
    """
    words = tuple(choices)
    if value not in words:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(words)}")
    return str(value)


def default_min_box_side(strides: Sequence[float]) -> float:
    """``min_box_side`` as release 8.4 derives it from the strides: the second one, or the only one."""
    return strides[min(1, len(strides) - 1)]


def is_sequence(value: Any) -> bool:
    """Whether a value holds several numbers."""
    return _items(value) is not None


def _items(value: Any) -> Sequence[Any] | None:
    """The elements of a list, tuple, array or tensor; None for anything else."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None


def _plain(value: Any) -> Any:
    """Unwrap the Python number in an array or tensor of one element."""
    return value.item() if hasattr(value, "item") and math.prod(value.shape) == 1 else value


def _is_finite(value: Any) -> bool:
    """Whether a value is a finite number; booleans do not count."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False
