"""What ``yolo-assigner export all`` is to build, as its TOML file says it."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from yolo_assigner.export.contract import KINDS, PRECISIONS
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.to_tensorrt.contract import RUNTIMES
from yolo_assigner.export.to_tensorrt.profiles import ProfileRequest, parse_profile

ONNX_RUNTIME = "onnxruntime"
TARGETS = (ONNX_RUNTIME, *RUNTIMES)
DETECTOR = "detector_loss"
# Names are those of files, and parts of a URL.
PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*|")


@dataclass(frozen=True)
class ModelTable:
    """One ``[[models]]`` table: every kind in every class count and precision, for every target.

    Attributes:
        kinds: Of ``yolo_assigner.export.contract.KINDS``.
        num_classes: Class counts C.
        precisions: Of ``yolo_assigner.export.contract.PRECISIONS``.
        targets: Of ``TARGETS``.
        prefix: Begins all names, to tell tables with different hyper-parameters apart.
        profiles: Names in the table ``[profiles]``, one optimisation profile each; None: all of them.
        compute_capabilities: GPUs that engines of ``tensorrt-rtx`` are for; its portable default when empty.
        weights: State dict of the detector, relative to the file; ``detector_loss`` only.
        scale: Of the detector; ``detector_loss`` only.
        hyperparameters: Fields of ``Hyperparameters``, over those of the whole file.
    """

    kinds: tuple[str, ...]
    num_classes: tuple[int, ...] = (80,)
    precisions: tuple[str, ...] = ("fp32",)
    targets: tuple[str, ...] = (ONNX_RUNTIME,)
    prefix: str = ""
    profiles: tuple[str, ...] | None = None
    compute_capabilities: tuple[str, ...] = ()
    weights: str | None = None
    scale: str | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    def numbers(self, kind: str, num_classes: int) -> Hyperparameters:
        """The hyper-parameters of one of its models.

        Raises:
            ValueError: One is unknown, of the wrong type, or has a key of its own in this table.
        """
        for name in ("num_classes", "scale"):
            if name in self.hyperparameters:
                raise ValueError(f"{name} is among the hyper-parameters; write it in the [[models]] table itself")
        own = {"num_classes": num_classes, **({"scale": self.scale} if kind == DETECTOR else {})}
        return read_table(Hyperparameters, {**self.hyperparameters, **own}, "hyperparameters")


@dataclass(frozen=True)
class FileTable:
    """The whole file.

    Attributes:
        models: ``[[models]]`` tables.
        out: The repository's folder, relative to the file.
        profiles: Words as of ``yolo-assigner export tensorrt --profile``, by the profile's name.
        hyperparameters: Fields of ``Hyperparameters``, for all models.
    """

    models: list[Any] = field(default_factory=list)
    out: str | None = None
    profiles: dict[str, Any] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildConfig:
    """A file that was read and checked.

    Attributes:
        path: Of the file; other paths in it are relative to its folder.
        out: The repository's folder; None where the file names none.
        models: The tables, each with the hyper-parameters of the file and its own.
        profiles: By name, in the file's order.
    """

    path: Path
    out: Path | None
    models: tuple[ModelTable, ...]
    profiles: Mapping[str, ProfileRequest]


def load_config(path: Path) -> BuildConfig:
    """Read a file.

    Args:
        path: TOML.

    Raises:
        ValueError: It cannot be read, or something in it is unknown, of the wrong type, empty or contradictory; the
            message names key, value and remedy.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # not UTF-8 and not TOML are ValueErrors too
        raise ValueError(f"{path} cannot be read as TOML ({error}); docs/export.md shows one") from error
    whole = read_table(FileTable, data, str(path))
    if not whole.models:
        raise ValueError(f"{path}: models is empty, nothing would be built; write a [[models]] table")
    profiles = {name: _profile(words, f"{path}: profiles.{name}") for name, words in whole.profiles.items()}
    tables = enumerate(whole.models, start=1)
    models = tuple(_model(table, whole, profiles, f"{path}: [[models]] number {number}") for number, table in tables)
    return BuildConfig(path, path.parent / whole.out if whole.out else None, models, profiles)


def _profile(words: Any, where: str) -> ProfileRequest:
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError(f'{where} is {words!r}, expected a list of words; write ["B=1,16,64", "imgsz=640"]')
    try:
        return parse_profile(words)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _model(table: Any, whole: FileTable, profiles: Collection[str], where: str) -> ModelTable:
    model = read_table(ModelTable, table, where)
    model = replace(model, hyperparameters={**whole.hyperparameters, **model.hyperparameters})
    try:
        _check_choices(model, profiles)
        _check_detector(model)
        for kind in model.kinds:
            for num_classes in model.num_classes:
                model.numbers(kind, num_classes)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return model


def _check_choices(model: ModelTable, profiles: Collection[str]) -> None:
    choices = {"kinds": KINDS, "precisions": PRECISIONS, "targets": TARGETS, "profiles": profiles}
    for key in ("kinds", "num_classes", "precisions", "targets", "profiles"):
        values = getattr(model, key)
        if values == ():
            raise ValueError(f"{key} is empty, nothing would be built; name at least one or leave {key} out")
        for value in values or () if key in choices else ():
            one_of(value, choices[key], f"{key}:")
    if min(model.num_classes) < 1:
        raise ValueError(
            f"num_classes has {min(model.num_classes)}, but a model has at least one class; write 1 or more"
        )
    if not PREFIX.fullmatch(model.prefix):
        raise ValueError(f"prefix is {model.prefix!r}; write letters, digits, - and _ only, a letter or digit first")
    if model.compute_capabilities and "tensorrt-rtx" not in model.targets:
        raise ValueError(
            "compute_capabilities are for tensorrt-rtx, which is not among targets; add it or leave them out"
        )


def _check_detector(model: ModelTable) -> None:
    given = {"weights": model.weights, "scale": model.scale}
    if DETECTOR not in model.kinds:
        for key, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{key} is {value!r}, but only {DETECTOR} has a detector; leave it out or add that kind"
                )
    elif None in given.values():
        raise ValueError(f'{DETECTOR} holds a detector; write weights = "FILE" and scale = "n"')


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
