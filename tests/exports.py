"""Cache of exported models for the tests, one set for each state of the sources; an export takes tens of seconds.

The cache is outside the repository, in ``$XDG_CACHE_HOME/yolo-assigner`` or ``~/.cache/yolo-assigner``.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from filelock import FileLock, Timeout

from examples.service import export_once
from tests.detectors import lively_detector
from yolo_assigner.export import cli
from yolo_assigner.export.contract import DETECTOR_KINDS
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.to_onnx.detector import detector_config
from yolo_assigner.export.to_onnx.exporter import export_onnx

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolo-assigner"
NUM_CLASSES = 3
# Every input that a model may take, and the other class loss.
EVERY_INPUT: dict[str, Any] = {"extra_inputs": ("class_weights", "ignore_bboxes"), "class_loss": "varifocal"}
# Hyper-parameters of an assigner that decides otherwise than the usual one, and takes any number of candidates.
OTHER_ASSIGNER: dict[str, Any] = {"topk": 100_000, "min_box_side": 16.0, "topk2": 2}
# Hyper-parameters of a detector that shares nothing with the usual one but its classes and scale.
OTHER_DETECTOR: dict[str, Any] = {"strides": (8, 16, 32, 64), "reg_max": 1, "extra_inputs": ("ignore_bboxes",)}
# Those of one with two branches, with the share of the third of five epochs.
END_TO_END: dict[str, Any] = {"end_to_end": True, "reg_max": 1, "one2many_share": 0.45}
# Words of a loss without distributions, of two levels and one class, with a name of its own.
TINY = (
    "--model loss --num-classes 1 --strides 8,16 --reg-max 1 --topk 4 --preset ultralytics-8.4 --name tiny"
    " --class-loss varifocal --gains 1,2,3"
)
# Number of source states whose models are kept.
KEPT = 4


def exported(kind: str, implementation: str, class_loss: str = "bce", **options: Any) -> Path:
    """Return the read-only folder of a model, named after its kind; a detector's weights are beside it.

    Args:
        kind: One of ``yolo_assigner.export.contract.KINDS``.
        implementation: Implementation of the assignment, ``dense`` or ``sparse``.
        class_loss: ``bce`` or ``varifocal``.
        options: Further hyper-parameters; the model has 3 classes unless they say otherwise.
    """
    return _model(kind, implementation, {"class_loss": class_loss, **options})


def exported_kinds(kinds: Iterable[str], implementation: str) -> list[Path]:
    """Return the folders of several models; those that another process is just making are waited for last."""
    folders, others = [], []
    for kind in kinds:
        try:
            folders.append(_model(kind, implementation, {"class_loss": "bce"}, wait=False))
        except Timeout:
            others.append(kind)
    return folders + [exported(kind, implementation) for kind in others]


def exported_by_command(words: str) -> Path:
    """Return the read-only folder that ``yolo-assigner export onnx`` writes if given further words."""

    def export(folder: Path) -> None:
        code = cli.main(["onnx", *words.split(), "--out", str(folder)])
        if code:
            raise RuntimeError(f"yolo-assigner export onnx {words} ended with {code}")

    return made_once(f"command-{hashlib.sha256(words.encode()).hexdigest()[:16]}", export)


def exported_for_examples() -> Path:
    """Return the read-only folder of the models that the examples and the tutorial export, of one class.

    In the implementation that is exported sooner; both give the same results.
    """

    def export(folder: Path) -> None:
        export_once(folder, 1, ("assigner", "loss", "loss_grad"), ("--implementation", "dense"))

    return made_once("examples", export)


def made_once(name: str, make: Callable[[Path], None], *, wait: bool = True) -> Path:
    """Return a read-only folder that is filled once per state of the sources.

    Args:
        name: Name among the folders of this state.
        make: Fills the folder that it is given.
        wait: Whether to wait while another process makes it.

    Raises:
        Timeout: Another process is making it, and it was not to be waited for.
    """
    folder = CACHE / "exports" / FINGERPRINT / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=-1 if wait else 0):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as made:
                make(Path(made))
                shutil.copytree(made, f"{folder}.part", dirs_exist_ok=True)
            Path(f"{folder}.part").rename(folder)  # atomic
    os.utime(folder.parent)
    _drop_old(folder.parent.parent)
    return folder


def _model(kind: str, implementation: str, options: dict[str, Any], *, wait: bool = True) -> Path:
    def export(folder: Path) -> None:
        detector = {"scale": "n"} if kind in DETECTOR_KINDS else {}
        hyperparameters = Hyperparameters(**{"num_classes": NUM_CLASSES, **detector, **options})
        weights = None
        if kind in DETECTOR_KINDS:
            weights = folder / "weights.safetensors"
            safetensors.torch.save_file(lively_detector(detector_config(hyperparameters)).state_dict(), weights)
        export_onnx(kind, hyperparameters, folder, implementation=implementation, weights=weights)

    words = [value if name == "class_loss" else f"{name}={value}" for name, value in options.items()]
    return made_once("-".join((kind, implementation, *words)), export, wait=wait)


def _fingerprint() -> str:
    """Hash everything that an export depends on; comments and docstrings, which change no model, are left out."""
    digest = hashlib.sha256()
    files = [path for package in ("yolo_loss", "models", "export") for path in (ROOT / package).rglob("*.py")]
    others = (ROOT / name for name in ("tests/exports.py", "tests/detectors.py", "examples/service.py"))
    for path in sorted([*files, *others]):
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
