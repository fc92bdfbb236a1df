"""The two libraries that build and run engines, TensorRT and TensorRT-RTX, whose modules have one interface."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from yolo_assigner.export.to_tensorrt.contract import RUNTIMES


class Library(NamedTuple):
    """Where a runtime's module is and how it comes there.

    Attributes:
        modules: Names to import, the first that is there counts.
        install: How to get one.
    """

    modules: tuple[str, ...]
    install: str


LIBRARIES: Mapping[str, Library] = {
    "tensorrt": Library(
        ("tensorrt",),
        'use an image of NVIDIA with TensorRT, or NVIDIA\'s package index and pip install "yolo-assigner[tensorrt]"',
    ),
    "tensorrt-rtx": Library(("tensorrt_rtx", "tensorrt_rtx_bindings"), 'pip install "yolo-assigner[tensorrt-rtx]"'),
}


def load_library(runtime: str) -> Any:
    """The module of a runtime.

    Args:
        runtime: One of ``RUNTIMES``.

    Raises:
        ValueError: There is no such runtime, or its module does not import.
    """
    if runtime not in LIBRARIES:
        raise ValueError(f"runtime is {runtime!r}, but an engine is of {' or '.join(RUNTIMES)}; choose one")
    failures = []
    for name in LIBRARIES[runtime].modules:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:  # the second when a shared library is missing
            failures.append(f"{name}: {error}")
    raise ValueError(f"{runtime} does not import ({'; '.join(failures)}); {LIBRARIES[runtime].install}")


def default_runtime() -> str:
    """The first of ``RUNTIMES`` that imports.

    Raises:
        ValueError: None does.
    """
    failures = []
    for runtime in RUNTIMES:
        try:
            load_library(runtime)
        except ValueError as error:
            failures.append(str(error))
        else:
            return runtime
    raise ValueError("; ".join(failures))
