"""Cache of exported models for the tests, one set for each state of the sources; an export takes tens of seconds.

The cache is outside the repository, in ``$XDG_CACHE_HOME/yolo-assigner`` or ``~/.cache/yolo-assigner``.
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
# Number of source states whose models are kept.
KEPT = 4


def exported(kind: str, implementation: str, class_loss: str = "bce") -> Path:
    """Return the read-only folder of a model with 3 classes, named after its kind; a detector's weights are beside it.

    Args:
        kind: One of ``yolo_assigner.export.contract.KINDS``.
        implementation: Implementation of the assignment, ``dense`` or ``sparse``.
        class_loss: ``bce`` or ``varifocal``.
    """
    state = CACHE / "exports" / FINGERPRINT
    folder = state / f"{kind}-{implementation}-{class_loss}"
    state.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=state) as made:
                _export(kind, implementation, class_loss, Path(made))
                shutil.copytree(made, f"{folder}.part", dirs_exist_ok=True)
            Path(f"{folder}.part").rename(folder)  # atomic
    os.utime(state)
    _drop_old(state.parent)
    return folder


def _export(kind: str, implementation: str, class_loss: str, folder: Path) -> None:
    weights = None
    if kind == "detector_loss":
        weights = folder / "weights.safetensors"
        safetensors.torch.save_file(lively_detector(NUM_CLASSES).state_dict(), weights)
    hyperparameters = Hyperparameters(num_classes=NUM_CLASSES, scale="n" if weights else None, class_loss=class_loss)
    export_onnx(kind, hyperparameters, folder, implementation=implementation, weights=weights)


def _fingerprint() -> str:
    """Hash everything that an export depends on; comments and docstrings, which change no model, are left out."""
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


# Computed when the sources are imported, since files may change while tests run.
FINGERPRINT = _fingerprint()


def _drop_old(folder: Path) -> None:
    for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
