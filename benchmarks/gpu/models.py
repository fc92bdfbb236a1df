"""The exported models and engines that take part: found in folders, or made there."""

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
FORMULATIONS = ("dense", "sparse")
# What is measured, and no more: the largest sizes decide what memory an engine asks for.
PROFILE = ("B=1,16,64", "M=1,100,300", "imgsz=640")


def find_model(
    folders: Sequence[Path], kind: str, formulation: str, precision: str, classes: int
) -> tuple[Path, Contract]:
    """An exported model.

    Args:
        folders: Where to look, with the folders in them.
        kind: Of the model.
        formulation: ``dense`` or ``sparse``.
        precision: ``fp32`` or ``fp16``.
        classes: C; an assigner takes any.

    Raises:
        ContractError: There is none.
    """
    for folder in (folder for folder in folders if folder.is_dir()):
        for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
            for path, contract in find_contracts(place) if any(place.glob("*.onnx")) else ():
                numbers = contract.hyperparameters
                right_classes = kind == "assigner" or numbers["num_classes"] == classes
                fits = right_classes and numbers["preset"] == contenders.PRESET
                if fits and (contract.kind, contract.formulation, contract.precision) == (kind, formulation, precision):
                    return path.with_name(contract.file), contract
    where = ", ".join(map(str, folders)) or "no folder"
    raise ContractError(
        f"no model of {classes} classes with preset {contenders.PRESET} in {where}; make all with "
        "`python -m benchmarks.gpu --prepare DIR`, then name DIR with --models"
    )


def find_engine(path: Path, contract: Contract, runtime: str) -> tuple[Path, EngineContract]:
    """An engine of a model, beside it.

    Args:
        path: The ONNX file.
        contract: Its contract.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        ContractError: There is none. None is built here, for that takes longer than all measuring.
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
    """Export all models, in both precisions, and build the engines that can be built here; but what is there already.

    Args:
        folder: Where to.
        say: Told of each.
        classes: C.
    """
    numbers = Hyperparameters(num_classes=classes, preset=contenders.PRESET)
    for kind in KIND_OF_TASK.values():
        for formulation in FORMULATIONS:
            for made, its_contract in _models(folder, kind, formulation, numbers):
                say(f"{made.relative_to(folder)}: {made.stat().st_size / 1024:.0f} KiB")
                if formulation == "dense":
                    _build(made, its_contract, say)


def _models(folder: Path, kind: str, formulation: str, numbers: Hyperparameters) -> list[tuple[Path, Contract]]:
    """In both precisions. Exporting wants packages that a machine which only measures need not have."""
    try:
        return [find_model([folder], kind, formulation, name, numbers.num_classes) for name in ("fp32", "fp16")]
    except ContractError:
        from yolo_assigner.export.to_onnx.exporter import export_onnx

        path, contract = export_onnx(kind, numbers, folder / formulation, implementation=formulation)
        return [(path, contract), _save_half(path, contract, folder / f"{formulation}-fp16")]


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
    """Build for every runtime that can do it here."""
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
