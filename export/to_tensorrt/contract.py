"""The contract beside a TensorRT engine: what it was built from, for which machines, and which sizes it takes.

Reading one needs nothing but the standard library.
"""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from yolo_assigner.export.contract import (
    ENGINE_SUFFIX,
    Contract,
    ContractError,
    TensorSpec,
    file_hash,
    read_specs,
    read_versioned,
    write_json,
)

ENGINE_CONTRACT_VERSION = 1
RUNTIMES = ("tensorrt", "tensorrt-rtx")
# Beside a model's file: engines are sought there and in the model's own folder.
ENGINE_FOLDER = "engines"

# Smallest, usual and largest size.
Sizes = tuple[int, int, int]
# Axis letter to its sizes.
Profile = dict[str, Sizes]


@dataclass(frozen=True)
class EngineContract:
    """What an engine takes, gives, was built from and runs on.

    Attributes:
        name: Name under which the model is served.
        file: Name of the engine file, beside the contract.
        sha256: Hash of that file's bytes.
        model_file: Name of the ONNX file that it was built from.
        model_sha256: Hash of that file's bytes.
        runtime: One of ``RUNTIMES``: engines of one cannot be read by the other.
        runtime_version: Version of the library that built it, the only one that reads it.
        compute_capabilities: Of the GPUs it is for, for example ``8.9``; empty: the runtime's portable default.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        profiles: For which the builder optimised: sizes of every dynamic axis of the inputs.
        inputs: Inputs in the engine's order, in its types.
        outputs: Outputs in the engine's order.
        build_seconds: How long the build took.
        contract_version: Version of this format.
    """

    name: str
    file: str
    sha256: str
    model_file: str
    model_sha256: str
    runtime: str
    runtime_version: str
    compute_capabilities: tuple[str, ...]
    precision: str
    profiles: tuple[Profile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    build_seconds: float
    contract_version: int = ENGINE_CONTRACT_VERSION

    @property
    def rebuild_command(self) -> str:
        """What to type to build it anew, in the folder of the ONNX file."""
        words = ["tensorrt", self.model_file, "--runtime", self.runtime, "--precision", self.precision]
        for profile in self.profiles:
            words += ["--profile", *profile_words(profile)]
        # The other runtime builds for the GPU it finds and takes no such words.
        if self.runtime == "tensorrt-rtx" and self.compute_capabilities:
            words += ["--compute-capability", *self.compute_capabilities]
        return f"yolo-assigner export {shlex.join(words)}"

    def save(self, path: Path) -> None:
        """Write the contract as JSON, whole or not at all."""
        write_json(path, dataclasses.asdict(self))


def profile_words(profile: Profile) -> tuple[str, ...]:
    """A profile as words of ``--profile`` that leave nothing to defaults."""
    return tuple(
        f"{axis}={low}" if low == usual == high else f"{axis}={low},{usual},{high}"
        for axis, (low, usual, high) in profile.items()
    )


def engine_stem(name: str, runtime: str, precision: str) -> str:
    """Stem of both files: engines of one model for several runtimes and precisions lie in one folder."""
    return f"{name}.{runtime}.{precision}"


def load_engine_contract(path: Path) -> EngineContract:
    """Read an engine's contract.

    Args:
        path: The ``.engine.json`` file.

    Raises:
        ContractError: It is not JSON, not an engine's contract, or of a newer format than this release reads.
    """
    remedy = "build the engine again with `yolo-assigner export tensorrt`"
    data = read_versioned(path, ENGINE_CONTRACT_VERSION, remedy)
    try:
        profiles = tuple(
            {axis: (int(low), int(usual), int(high)) for axis, (low, usual, high) in profile.items()}
            for profile in data["profiles"]
        )
        capabilities = tuple(data["compute_capabilities"])
        tensors = {key: read_specs(data[key]) for key in ("inputs", "outputs")}
        contract = EngineContract(**{**data, **tensors, "profiles": profiles, "compute_capabilities": capabilities})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ContractError(f"{path} is not a complete engine contract ({error!r}); {remedy}") from error
    if contract.runtime not in RUNTIMES:
        raise ContractError(f"{path} is of runtime {contract.runtime!r}, not one of {', '.join(RUNTIMES)}; {remedy}")
    return contract


def find_engines(folder: Path, contract: Contract) -> list[tuple[Path, EngineContract]]:
    """All engines of a model in a folder, unchecked but for being readable contracts.

    Args:
        folder: Where ``yolo-assigner export tensorrt --out`` wrote.
        contract: Of the model.

    Returns:
        Pairs of the engine file's path and its contract, ordered by name.

    Raises:
        ContractError: A contract is unreadable.
    """
    found = ((path, load_engine_contract(path)) for path in sorted(folder.glob(f"*{ENGINE_SUFFIX}")))
    return [(path.with_name(engine.file), engine) for path, engine in found if engine.name == contract.name]


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
