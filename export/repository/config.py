"""The TOML file of ``yolo-assigner export all``: its tables, checked, and the errors for users."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from yolo_assigner.export.contract import DETECTOR_KINDS, KINDS, PRECISIONS, SPARSE_KINDS
from yolo_assigner.export.to_tensorrt.contract import RUNTIMES
from yolo_assigner.export.to_tensorrt.profiles import ProfileRequest, parse_profile

ONNX_RUNTIME = "onnxruntime"
TARGETS = (ONNX_RUNTIME, *RUNTIMES)
# Names of models are also names of files and parts of a URL.
PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*|")
# What a value should have been, by the type of pydantic's error.
EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a string",
    "dict_type": "a table",
    "model_type": "a table",
}


def one_of(value: str, choices: Collection[str], what: str) -> None:
    """Check that a word is one of the choices.

    Args:
        value: The word.
        choices: Allowed words.
        what: What the word stands for; begins the error.

    Raises:
        ValueError: It is not among them; the message proposes the nearest one, or lists all.
    """
    if value in choices:
        return
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(choices) or 'none'}"
    raise ValueError(f"{what} {value!r} is unknown; {hint}")


class Table(BaseModel):
    """Base of all tables: an unknown key or a value of another type is an error."""

    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, table: Any) -> Any:
        for key in table if isinstance(table, dict) else ():
            one_of(key, cls.model_fields, "key")
        return table


def _list_of(items: str) -> BeforeValidator:
    """Take a TOML array for a tuple.

    Args:
        items: What it holds, for the error.
    """

    def convert(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise PydanticCustomError("list", "a list of {items}; write it in brackets", {"items": items})
        return tuple(value)

    return BeforeValidator(convert)


def _read_profile(words: Any) -> ProfileRequest:
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise PydanticCustomError("list", 'a list of words; write ["B=1,16,64", "imgsz=640"]')
    return parse_profile(words)


Strings = Annotated[tuple[str, ...], _list_of("strings")]
Counts = Annotated[tuple[int, ...], _list_of("whole numbers")]


class ModelTable(Table):
    """One ``[[models]]`` table: every kind in every class count and precision, for every target.

    Attributes:
        kinds: Kinds of model, of ``yolo_assigner.export.contract.KINDS``.
        num_classes: Class counts C.
        precisions: Precisions, of ``yolo_assigner.export.contract.PRECISIONS``.
        targets: Runtimes to build for, of ``TARGETS``.
        prefix: Begins all names, to tell tables with different hyper-parameters apart.
        profiles: Names in the table ``[profiles]``, one optimisation profile each; None for all of them.
        compute_capabilities: GPUs to build engines of ``tensorrt-rtx`` for; its portable default when empty.
        weights: Path of the detector's state dict, relative to the file; ``DETECTOR_KINDS`` only.
        scale: Scale of the detector; likewise.
        hyperparameters: Fields of ``Hyperparameters``, over those of the whole file.
    """

    kinds: Strings
    num_classes: Counts = (80,)
    precisions: Strings = ("fp32",)
    targets: Strings = (ONNX_RUNTIME,)
    prefix: str = ""
    profiles: Strings | None = None
    compute_capabilities: Strings = ()
    weights: str | None = None
    scale: str | None = None
    hyperparameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> ModelTable:
        self._check_choices()
        self._check_targets()
        self._check_detector()
        if min(self.num_classes) < 1:
            raise ValueError(
                f"num_classes has {min(self.num_classes)}, but a model has at least one class; write 1 or more"
            )
        if not PREFIX.fullmatch(self.prefix):
            raise ValueError(f"prefix is {self.prefix!r}; write letters, digits, - and _ only, a letter or digit first")
        if self.compute_capabilities and "tensorrt-rtx" not in self.targets:
            raise ValueError(
                "compute_capabilities are for tensorrt-rtx, which is not among targets; add it or leave them out"
            )
        return self

    def _check_choices(self) -> None:
        for key in ("kinds", "num_classes", "precisions", "targets", "profiles"):
            if getattr(self, key) == ():
                raise ValueError(f"{key} is empty, nothing would be built; name at least one or leave {key} out")
        for key, choices in {"kinds": KINDS, "precisions": PRECISIONS, "targets": TARGETS}.items():
            for value in getattr(self, key):
                one_of(value, choices, f"{key}:")

    def _check_targets(self) -> None:
        others = [target for target in self.targets if target != ONNX_RUNTIME]
        for kind in SPARSE_KINDS:
            if kind in self.kinds and others:
                raise ValueError(
                    f"{kind} lists candidate pairs, which {others[0]} cannot; give it a table of its own with "
                    f'targets = ["{ONNX_RUNTIME}"]'
                )

    def _check_detector(self) -> None:
        given = {"weights": self.weights, "scale": self.scale}
        detectors = [kind for kind in self.kinds if kind in DETECTOR_KINDS]
        if not detectors:
            for key, value in given.items():
                if value is not None:
                    raise ValueError(
                        f"{key} is {value!r}, but only {' and '.join(DETECTOR_KINDS)} have a detector; leave it out or "
                        "add such a kind"
                    )
        elif None in given.values():
            raise ValueError(f'{detectors[0]} holds a detector; write weights = "FILE" and scale = "n"')


class FileTable(Table):
    """The whole file.

    Attributes:
        models: ``[[models]]`` tables.
        out: The repository's folder, relative to the file.
        profiles: Sizes to build engines for, by the profile's name, in the file's order.
        hyperparameters: Fields of ``Hyperparameters``, for all models.
    """

    models: Annotated[tuple[ModelTable, ...], _list_of("tables")] = ()
    out: str | None = None
    profiles: dict[str, Annotated[ProfileRequest, PlainValidator(_read_profile)]] = {}
    hyperparameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> FileTable:
        if not self.models:
            raise ValueError("models is empty, nothing would be built; write a [[models]] table")
        return self


@dataclass(frozen=True)
class BuildConfig:
    """A file that was read and checked.

    Attributes:
        path: Path of the file; paths in it are relative to its folder.
        file: Its content.
    """

    path: Path
    file: FileTable

    @property
    def out(self) -> Path | None:
        """The repository's folder; None where the file names none."""
        return self.path.parent / self.file.out if self.file.out else None


def load_config(path: Path) -> BuildConfig:
    """Read and check a TOML file.

    Raises:
        ValueError: It cannot be read, or something in it is unknown, of the wrong type, empty or contradictory; the
            message names key, value and remedy.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # text that is not UTF-8 or not TOML raises ValueErrors
        raise ValueError(f"{path} cannot be read as TOML ({error}); docs/export.md shows one") from error
    try:
        return BuildConfig(path, FileTable.model_validate(data))
    except ValidationError as error:
        raise ValueError(_explain(error.errors()[0], str(path))) from error


def _explain(error: ErrorDetails, where: str) -> str:
    place = _place(where, error["loc"])
    if error["type"] == "value_error":
        return f"{place}: {error['ctx']['error']}"
    if error["type"] == "missing":
        *outer, key = error["loc"]
        return f"{_place(where, tuple(outer))} has no {key}; write {key} = ..."
    return f"{place} is {error['input']!r}, expected {EXPECTED.get(error['type'], error['msg'])}"


def _place(where: str, location: tuple[int | str, ...]) -> str:
    match location:
        case ("models", int(index), *rest):
            return _place(f"{where}: [[models]] number {index + 1}", tuple(rest))
        case (str(key), int(index)):
            return f"{where}: {key}, entry {index + 1}"
        case ():
            return where
        case _:
            return f"{where}: {'.'.join(str(key) for key in location)}"
