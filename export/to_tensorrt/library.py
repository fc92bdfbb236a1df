"""Import of the libraries that build and run engines, TensorRT and TensorRT-RTX."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from yolo_assigner.export.to_tensorrt.contract import RUNTIMES


class Library(NamedTuple):
    """Python module of a runtime.

    Attributes:
        modules: Names of the module, in order of preference.
        install: How to install it, for error messages.
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
    """Import the module of a runtime.

    Args:
        runtime: One of ``RUNTIMES``.

    Raises:
        ValueError: The runtime is unknown, or its module does not import.
    """
    if runtime not in LIBRARIES:
        raise ValueError(f"runtime is {runtime!r}, but an engine is of {' or '.join(RUNTIMES)}; choose one")
    failures = []
    for name in LIBRARIES[runtime].modules:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError if a shared library is missing
            failures.append(f"{name}: {error}")
    raise ValueError(f"{runtime} does not import ({'; '.join(failures)}); {LIBRARIES[runtime].install}")


def default_runtime() -> str:
    """Return the first of ``RUNTIMES`` whose module imports.

    Raises:
        ValueError: No module imports.
    """
    failures = []
    for runtime in RUNTIMES:
        try:
            load_library(runtime)
            return runtime
        except ValueError as error:
            failures.append(str(error))
    raise ValueError("; ".join(failures))
