"""The TensorRT engines of a container: built for the GPU that it finds, into a folder that outlives it.

What this imports is imported when it is needed: a container without engines starts sooner.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from yolo_assigner.export.contract import Contract

# As shells have it: 128 and the signal's number.
INTERRUPTED = 130
UNUSABLE = 2


class Machine(NamedTuple):
    """What engines are built by and for.

    Attributes:
        runtime: The TensorRT that is installed, ``tensorrt`` or ``tensorrt-rtx``.
        version: Its version.
        capability: Compute capability of the GPU, for example ``8.9``.
    """

    runtime: str
    version: str
    capability: str


def build_engines(artifacts: Path, options: Sequence[str]) -> int:
    """Build an engine of every dense model, whether there is one or not.

    Args:
        artifacts: Folder of the models; its sub-folder ``engines`` gets the engines.
        options: Words for ``yolo-assigner export tensorrt``.

    Returns:
        The highest of its exit codes; 0 when all are built.
    """
    try:
        models = _dense_models(artifacts)
    except ValueError as error:
        say(f"error: {error}")
        return UNUSABLE
    if not models:
        say(f"error: TensorRT needs dense models, of which {artifacts} has none; the target gpu has them")
        return UNUSABLE
    try:
        machine = _machine()
    except (ValueError, RuntimeError):
        machine = None  # the build says what is missing, unless it can do without
    return max(_build(path, options, machine) for path, _ in models)


def first_start(artifacts: Path, options: Sequence[str]) -> int:
    """Build the engines that this machine lacks, where there is a volume to keep them.

    What fails is said and does not keep the service from starting: it runs without those engines.

    Args:
        artifacts: Folder of the models.
        options: Words for ``yolo-assigner export tensorrt``.

    Returns:
        130 when the user ended it, else 0.

    Raises:
        SystemExit: An option is none of that command's.
    """
    folder = artifacts / "engines"
    if not folder.is_mount():
        return 0
    if not os.access(folder, os.W_OK):
        say(f"no engine is built: user {os.getuid()} may not write to {folder}")
        return 0
    try:
        machine = _machine()
        missing = [path for path, contract in _dense_models(artifacts) if not has_engine(folder, contract, machine)]
    except (ValueError, RuntimeError) as error:
        say(f"no engine is built: {error}")
        return 0
    return INTERRUPTED if any(_build(path, options, machine) == INTERRUPTED for path in missing) else 0


def has_engine(folder: Path, contract: Contract, machine: Machine) -> bool:
    """Whether one of a model's engines is whole and for this machine; what speaks against the others is said.

    Args:
        folder: Of the engines.
        contract: Of the model.
        machine: What is to run it.
    """
    from yolo_assigner.export.contract import ContractError
    from yolo_assigner.export.to_tensorrt.contract import check_engine, check_machine, find_engines

    for path, engine in find_engines(folder, contract):
        try:
            check_machine(engine, *machine)
            check_engine(path, engine, contract)
        except ContractError as error:
            say(f"not used: {error}")
        else:
            return True
    return False


def say(text: str) -> None:
    """Write to the container's log."""
    print(text, file=sys.stderr, flush=True)


def _dense_models(artifacts: Path) -> list[tuple[Path, Contract]]:
    from yolo_assigner.export.contract import find_contracts

    return [(path, contract) for path, contract in find_contracts(artifacts) if contract.formulation == "dense"]


def _machine() -> Machine:
    """This one.

    Raises:
        ValueError: No TensorRT is installed.
        RuntimeError: There is no GPU.
    """
    from yolo_assigner.export.to_tensorrt.config import current_capability
    from yolo_assigner.export.to_tensorrt.library import default_runtime, load_library

    runtime = default_runtime()
    return Machine(runtime, load_library(runtime).__version__, current_capability())


def _build(model: Path, options: Sequence[str], machine: Machine | None) -> int:
    from yolo_assigner.export.cli import main as export_main

    words = ["tensorrt", str(model), "--out", str(model.parent / "engines"), *options]
    # This runtime does not look for a GPU, and what it builds for none in particular does not run on the oldest.
    if machine and machine.runtime == "tensorrt-rtx" and "--compute-capability" not in options:
        words += ["--compute-capability", machine.capability]
    try:
        return export_main(words)
    except OSError as error:
        say(f"error: the engine of {model.name} cannot be written ({error}); see to the volume's space and its owner")
        return 1
