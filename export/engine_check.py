"""Whether an engine is the one its contract describes, of the model that is there, for the machine that runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from yolo_assigner.export.contract import Contract, ContractError, file_hash
from yolo_assigner.export.engine_contract import EngineContract

# NVIDIA: engines of TensorRT-RTX run from 8.0 on unless they were built for others, which 7.5 has to be asked for.
PORTABLE_FROM = (8, 0)
# Enough of a hash to tell two apart.
SHOWN = 12


def check_engine(path: Path, engine: EngineContract, model: Contract) -> None:
    """Compare an engine's file with its contract and with the model's.

    Args:
        path: The engine file.
        engine: Its contract.
        model: Contract of the model that it is to compute.

    Raises:
        ContractError: The file is missing or not the one described, or was built from another model.
    """
    again = f"build it with `{engine.rebuild_command}`"
    if not path.is_file():
        raise ContractError(f"{path} is missing, though a contract describes it; {again}")
    if engine.model_sha256 != model.sha256:
        raise ContractError(
            f"{path} was built from an {engine.model_file} with hash {engine.model_sha256[:SHOWN]}, "
            f"but {model.file} has {model.sha256[:SHOWN]}; {again}"
        )
    found = file_hash(path)
    if found != engine.sha256:
        raise ContractError(
            f"{path} is cut short or altered: its hash is {found[:SHOWN]}, "
            f"its contract says {engine.sha256[:SHOWN]}; {again}"
        )


def check_machine(engine: EngineContract, runtime: str, version: str, capability: str | None) -> None:
    """Compare what an engine was built for with what is here.

    Args:
        engine: Its contract.
        runtime: The runtime that is to load it.
        version: Version of that runtime.
        capability: Compute capability of the GPU, for example ``8.9``; None when it is not known, and not compared.

    Raises:
        ContractError: One of them is another.
    """
    if engine.runtime != runtime:
        again = replace(engine, runtime=runtime, compute_capabilities=()).rebuild_command
        raise ContractError(
            f"{engine.file} was built by {engine.runtime}, but {runtime} is to load it; build one with `{again}`"
        )
    if engine.runtime_version != version:
        raise ContractError(
            f"{engine.file} was built by {runtime} {engine.runtime_version}, which alone can load it, "
            f"but {version} is installed; build it again with `{engine.rebuild_command}`"
        )
    if capability is not None and not _runs_on(engine, capability):
        again = replace(engine, compute_capabilities=(capability,)).rebuild_command
        raise ContractError(
            f"{engine.file} was built for GPUs of compute capability {target_text(engine)}, "
            f"but the one here has {capability}; build it here with `{again}`"
        )


def target_text(engine: EngineContract) -> str:
    """The compute capabilities that an engine is for, in words."""
    return " and ".join(engine.compute_capabilities) or f"{PORTABLE_FROM[0]}.{PORTABLE_FROM[1]} and later"


def _runs_on(engine: EngineContract, capability: str) -> bool:
    if engine.compute_capabilities:
        return capability in engine.compute_capabilities
    return tuple(int(part) for part in capability.split(".")) >= PORTABLE_FROM
