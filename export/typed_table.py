"""From a table of a configuration file to a dataclass, by the types of its fields."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
NAMES = {int: "whole number", float: "number", str: "string", dict: "table", list: "list of tables"}


def read_table(cls: type[T], table: Any, where: str) -> T:
    """Make a dataclass of a table.

    Args:
        cls: A dataclass whose fields are numbers, strings, tuples of one of them, lists or dicts, or any of these or
            None.
        table: Values by the names of the fields; those with a default may be missing.
        where: The table, for the error.

    Raises:
        ValueError: A key is unknown or missing, a value is of the wrong type, or the dataclass refuses it.
    """
    if not isinstance(table, dict):
        raise ValueError(f"{where} is {table!r}, expected a table")
    entries = {entry.name: entry for entry in fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    for key in table:
        one_of(key, entries, f"{where}: key")
    for name, entry in entries.items():
        if name not in table and entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{where} has no {name}; write {name} = ...")
    values = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in table.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def one_of(value: str, choices: Collection[str], what: str) -> None:
    """Check a word.

    Args:
        value: The word.
        choices: What it may be.
        what: What it is, for the error.

    Raises:
        ValueError: It is none of the choices.
    """
    if value in choices:
        return
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(choices) or 'none'}"
    raise ValueError(f"{what} {value!r} is unknown; {hint}")


def _convert(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) is UnionType:
        (hint,) = (choice for choice in get_args(hint) if choice is not NoneType)
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r}, expected a list of {NAMES[inner]}s; write it in brackets")
        return tuple(_convert(inner, item, f"{where}, entry {place}") for place, item in enumerate(value, start=1))
    kind = get_origin(hint) or hint
    if kind is float and type(value) is int:
        return float(value)
    # Not isinstance: true is an int to Python, and nobody means it as one.
    if type(value) is not kind:
        raise ValueError(f"{where} is {value!r}, expected a {NAMES[kind]}")
    return value
