"""The artefacts in a repository, and whether each is what would be built now."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from yolo_assigner.export.contract import Contract, ContractError, file_hash, load_contract, write_json
from yolo_assigner.export.repository.plan import EngineTarget, OnnxTarget, Target
from yolo_assigner.export.to_tensorrt.config import current_capability
from yolo_assigner.export.to_tensorrt.contract import check_engine, load_engine_contract
from yolo_assigner.export.to_tensorrt.library import load_library

# A folder, because every other *.json in the repository is a model's contract.
STATE_FOLDER = ".build"
# Libraries that decide what an export writes, this project's among them.
LIBRARIES = ("yolo-assigner", "torch", "onnx", "onnxscript", "onnx-ir", "ml-dtypes")
# This project's code that does, as folders beside each other; the version does not change with every edit.
PACKAGES = ("yolo_loss", "yolo_assigner/models", "yolo_assigner/export")
SOURCES = Path(__file__).parents[3]


class Repository:
    """A folder with artefacts and a record of what each was built from. Made by :func:`open_repository`.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / STATE_FOLDER / "artefacts.json"
        self._sources = source_hash(SOURCES)
        self._record: dict[str, dict[str, Any]] = _read_record(self._path)

    def recipe(self, target: Target) -> str:
        """Hash everything that an artefact is built from.

        Args:
            target: The artefact; the model of an engine must be there.

        Raises:
            ValueError: The weights, the runtime or the model of an engine cannot be read.
            BuildError: The engine is for the GPU of this machine, and there is none.
        """
        parts = _model_parts(target) if isinstance(target, OnnxTarget) else self._engine_parts(target)
        text = json.dumps({**parts, "sources": self._sources}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def has(self, target: Target, recipe: str) -> bool:
        """Whether the artefact is there, undamaged, and built from this recipe.

        Args:
            target: The artefact.
            recipe: Its :meth:`recipe` as it is now.
        """
        if self._record.get(target.label, {}).get("recipe") != recipe:
            return False
        try:
            self._check(target)
        except (ContractError, OSError):
            return False
        return True

    def keep(self, target: Target, recipe: str) -> None:
        """Record that an artefact was built."""
        self._record[target.label] = {"recipe": recipe, "files": target.files}
        write_json(self._path, self._record)

    def unnamed(self, labels: Collection[str]) -> list[str]:
        """List the recorded artefacts that are not among these."""
        return [label for label in self._record if label not in labels]

    def remove(self, label: str) -> None:
        """Delete an artefact's files and its entry in the record."""
        for file in self._record.pop(label)["files"]:
            (self.folder / file).unlink(missing_ok=True)
        write_json(self._path, self._record)

    def sweep(self, target: Target) -> None:
        """Delete the half-written files that a killed build of an artefact left."""
        for file in target.files:
            path = self.folder / file
            path.with_name(f"{path.name}.tmp").unlink(missing_ok=True)

    def _engine_parts(self, target: EngineTarget) -> dict[str, Any]:
        for_this_gpu = target.runtime == "tensorrt"
        return {
            "model": self._contract(target.model).sha256,
            "runtime": target.runtime,
            "runtime_version": load_library(target.runtime).__version__,
            "profiles": target.profiles,
            "precision": target.model.precision,
            "compute_capabilities": (current_capability(),) if for_this_gpu else target.compute_capabilities,
        }

    def _contract(self, model: OnnxTarget) -> Contract:
        return load_contract(self.folder / f"{model.name}.json")

    def _check(self, target: Target) -> None:
        artefact, description = (self.folder / file for file in target.files)
        if isinstance(target, EngineTarget):
            check_engine(artefact, load_engine_contract(description), self._contract(target.model))
        elif load_contract(description).sha256 != file_hash(artefact):
            raise ContractError(f"{artefact} is not the file that {description.name} describes")


@contextlib.contextmanager
def open_repository(folder: Path) -> Iterator[Repository]:
    """Open a repository into which no other run builds meanwhile.

    Args:
        folder: Its folder, made when it is not there.

    Raises:
        ValueError: Another run is building there, or the folder cannot be made.
    """
    state = folder / STATE_FOLDER
    # The system releases the lock when the process ends, however it does.
    lock = FileLock(state / "lock", timeout=0)
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another `yolo-assigner export all` is building in {folder}; wait until it is done"
        ) from error
    except OSError as error:
        raise ValueError(f"{folder} cannot hold a repository ({error}); choose another --out") from error
    try:
        yield Repository(folder)
    finally:
        lock.release()


def source_hash(root: Path) -> str:
    """Hash this project's code that takes part in an export.

    Args:
        root: Folder of ``PACKAGES``.

    Raises:
        ValueError: One of them has no source files there.
    """
    digest = hashlib.sha256()
    for package in PACKAGES:
        files = sorted((root / package).rglob("*.py"))
        if not files:
            raise ValueError(f"{root / package} holds no source files to hash; install yolo-assigner anew")
        for path in files:
            digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _model_parts(target: OnnxTarget) -> dict[str, Any]:
    if target.weights and not target.weights.is_file():
        raise ValueError(f"weights is {target.weights}, which is no file; name one that torch or safetensors wrote")
    return {
        "kind": target.kind,
        "hyperparameters": target.hyperparameters.as_contract(),
        "implementation": target.implementation,
        "precision": target.precision,
        "weights": file_hash(target.weights) if target.weights else None,
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _read_record(path: Path) -> dict[str, dict[str, Any]]:
    """Read the record; empty when it is missing or damaged, so that everything is built anew."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
