"""Finds the exported models and engines to measure, or makes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import contenders
from yolo_assigner.export.contract import Contract, ContractError, file_hash, find_contracts
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.to_tensorrt.contract import RUNTIMES, EngineContract, find_engines
from yolo_assigner.export.to_tensorrt.library import load_library

KIND_OF_TASK = {"assigner": "assigner", "loss": "loss", "loss+grad": "loss_grad"}
IMPLEMENTATIONS = ("dense", "sparse")
# Only what is measured: the largest sizes decide how much memory an engine takes.
PROFILE = ("B=1,16,64", "M=1,100,300", "imgsz=640")


def find_model(
    folders: Sequence[Path], kind: str, implementation: str, precision: str, classes: int
) -> tuple[Path, Contract]:
    """Find an exported model.

    Args:
        folders: Folders to search, with the folders in them.
        kind: Kind of the model.
        implementation: ``dense`` or ``sparse``.
        precision: ``fp32`` or ``fp16``.
        classes: C; ignored for an assigner.

    Raises:
        ContractError: No model fits.
    """
    for folder in (folder for folder in folders if folder.is_dir()):
        for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
            for path, contract in find_contracts(place) if any(place.glob("*.onnx")) else ():
                hyperparameters = contract.hyperparameters
                right_classes = kind == "assigner" or hyperparameters["num_classes"] == classes
                fits = right_classes and hyperparameters["preset"] == contenders.PRESET
                if fits and (contract.kind, contract.formulation, contract.precision) == (
                    kind,
                    implementation,
                    precision,
                ):
                    return path.with_name(contract.file), contract
    where = ", ".join(map(str, folders)) or "no folder"
    raise ContractError(
        f"no model of {classes} classes with preset {contenders.PRESET} in {where}; make all with "
        "`python -m benchmarks.gpu --prepare DIR`, then name DIR with --models"
    )


def find_engine(path: Path, contract: Contract, runtime: str) -> tuple[Path, EngineContract]:
    """Find an engine of a model in the model's folder.

    Args:
        path: The ONNX file.
        contract: Contract of the model.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        ContractError: No engine fits. None is built here, because that takes longer than all measuring.
    """
    found = [
        pair
        for pair in find_engines(path.parent, contract)
        if (pair[1].runtime, pair[1].precision) == (runtime, contract.precision)
        and pair[1].model_sha256 == contract.sha256
    ]
    if not found:
        raise ContractError(
            f"no engine of {runtime} for {path.name} in {path.parent}; build it there with "
            "`python -m benchmarks.gpu --prepare DIR` (classic TensorRT on the machine that measures)"
        )
    return found[0]


def prepare(folder: Path, say: Callable[[str], None] = print, classes: int = 80) -> None:
    """Export all models in both precisions, and build the engines that can be built here; existing ones are kept.

    Args:
        folder: Folder to write to.
        say: Receives a line for each file.
        classes: C.
    """
    hyperparameters = Hyperparameters(num_classes=classes, preset=contenders.PRESET)
    for kind in KIND_OF_TASK.values():
        for implementation in IMPLEMENTATIONS:
            for made, its_contract in _models(folder, kind, implementation, hyperparameters):
                say(f"{made.relative_to(folder)}: {made.stat().st_size / 1024:.0f} KiB")
                if implementation == "dense":
                    _build(made, its_contract, say)


def _models(
    folder: Path, kind: str, implementation: str, hyperparameters: Hyperparameters
) -> list[tuple[Path, Contract]]:
    """Models of both precisions. Exporting imports packages that a machine which only measures need not have."""
    try:
        return [
            find_model([folder], kind, implementation, name, hyperparameters.num_classes) for name in ("fp32", "fp16")
        ]
    except ContractError:
        from yolo_assigner.export.to_onnx.exporter import export_onnx

        path, contract = export_onnx(kind, hyperparameters, folder / implementation, implementation=implementation)
        return [(path, contract), _save_half(path, contract, folder / f"{implementation}-fp16")]


def _save_half(path: Path, contract: Contract, folder: Path) -> tuple[Path, Contract]:
    import onnx

    from yolo_assigner.export.to_onnx.precision import narrow

    model, halves = narrow(onnx.load(path), contract, "fp16")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / halves.file
    target.write_bytes(model.SerializeToString())
    halves = dataclasses.replace(halves, sha256=file_hash(target))
    halves.save(folder / f"{halves.name}.json")
    return target, halves


def _build(path: Path, contract: Contract, say: Callable[[str], None]) -> None:
    """Build engines for every runtime that can build here."""
    for runtime in RUNTIMES:
        try:
            engine = _built(path, contract, runtime)
        except (ImportError, ValueError, RuntimeError) as error:
            say(f"  no engine of {runtime}: {error}")
        else:
            say(f"  {engine.name}: {engine.stat().st_size / 2**20:.1f} MiB")


def _built(path: Path, contract: Contract, runtime: str) -> Path:
    try:
        return find_engine(path, contract, runtime)[0]
    except ContractError:
        from yolo_assigner.export.to_tensorrt.build import build_engine
        from yolo_assigner.export.to_tensorrt.profiles import parse_profile

        load_library(runtime)
        return build_engine(path, path.parent, runtime=runtime, profiles=[parse_profile(PROFILE)])[0]
