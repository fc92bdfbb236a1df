"""Exported models for the tests, made once for each state of the sources: an export takes tens of seconds.

They are kept outside the tree, in ``$XDG_CACHE_HOME/yolo-assigner`` or ``~/.cache/yolo-assigner``.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
from filelock import FileLock

from tests.detectors import lively_detector
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.to_onnx.exporter import export_onnx

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolo-assigner"
NUM_CLASSES = 3
# States of the sources whose models are kept.
KEPT = 4


def exported(kind: str, formulation: str, class_loss: str = "bce") -> Path:
    """The folder of one model of 3 classes under its kind's name, and of a detector's weights; not to be written to.

    Args:
        kind: One of ``yolo_assigner.export.contract.KINDS``.
        formulation: How its assignment is computed.
        class_loss: ``bce`` or ``varifocal``.
    """
    state = CACHE / "exports" / FINGERPRINT
    folder = state / f"{kind}-{formulation}-{class_loss}"
    state.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=state) as made:
                _export(kind, formulation, class_loss, Path(made))
                shutil.copytree(made, f"{folder}.part", dirs_exist_ok=True)
            Path(f"{folder}.part").rename(folder)  # whole or not at all
    os.utime(state)
    _drop_old(state.parent)
    return folder


def _export(kind: str, formulation: str, class_loss: str, folder: Path) -> None:
    weights = None
    if kind == "detector_loss":
        weights = folder / "weights.safetensors"
        safetensors.torch.save_file(lively_detector(NUM_CLASSES).state_dict(), weights)
    numbers = Hyperparameters(num_classes=NUM_CLASSES, scale="n" if weights else None, class_loss=class_loss)
    export_onnx(kind, numbers, folder, implementation=formulation, weights=weights)


def _fingerprint() -> str:
    """A hash of all that an export is made from, without comments and docstrings: changing those changes no model."""
    digest = hashlib.sha256()
    files = [path for package in ("yolo_loss", "models", "export") for path in (ROOT / package).rglob("*.py")]
    for path in sorted([*files, Path(__file__), ROOT / "tests" / "detectors.py"]):
        digest.update(_code(path).encode())
    digest.update("".join(f"{name} {version(name)} " for name in ("torch", "onnx", "onnxscript", "numpy")).encode())
    return digest.hexdigest()[:16]


def _code(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


# Taken when the sources are loaded: they may change while tests run.
FINGERPRINT = _fingerprint()


def _drop_old(folder: Path) -> None:
    for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
