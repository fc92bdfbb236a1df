"""The contract beside a TensorRT engine: its model, its target machines and the sizes that it accepts.

Reading and checking it needs only the standard library.
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
# Subfolder of a model's folder; engines are searched for in both.
ENGINE_FOLDER = "engines"

# Without other targets, engines of TensorRT-RTX run on this compute capability and later ones; 7.5 must be requested.
PORTABLE_FROM = (8, 0)
# Digits of a hash that error messages show.
SHOWN = 12

# Smallest, usual and largest size.
Sizes = tuple[int, int, int]
# Sizes by axis letter.
Profile = dict[str, Sizes]


@dataclass(frozen=True)
class EngineContract:
    """Description of an engine.

    Attributes:
        name: Name under which the model is served.
        file: Name of the engine file, beside the contract.
        sha256: Hash of that file.
        model_file: Name of the ONNX file that the engine was built from.
        model_sha256: Hash of that file.
        runtime: One of ``RUNTIMES``, the only one that can load the engine.
        runtime_version: Version of the library that built the engine, the only one that can load it.
        compute_capabilities: Compute capabilities of the target GPUs, for example ``8.9``; empty for the runtime's
            portable default.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        profiles: Sizes of every dynamic axis of the inputs, one entry per optimization profile.
        inputs: Inputs in the engine's order and types.
        outputs: Outputs in the engine's order.
        build_seconds: Duration of the build.
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
        """Command that rebuilds the engine in the folder of the ONNX file."""
        words = ["tensorrt", self.model_file, "--runtime", self.runtime, "--precision", self.precision]
        for profile in self.profiles:
            words += ["--profile", *profile_words(profile)]
        # TensorRT builds for the GPU that it finds and has no such option.
        if self.runtime == "tensorrt-rtx" and self.compute_capabilities:
            words += ["--compute-capability", *self.compute_capabilities]
        return f"yolo-assigner export {shlex.join(words)}"

    def save(self, path: Path) -> None:
        """Write the contract as JSON, atomically."""
        write_json(path, dataclasses.asdict(self))


def profile_words(profile: Profile) -> tuple[str, ...]:
    """Convert a profile to arguments of ``--profile`` that leave nothing to defaults."""
    return tuple(
        f"{axis}={low}" if low == usual == high else f"{axis}={low},{usual},{high}"
        for axis, (low, usual, high) in profile.items()
    )


def engine_stem(name: str, runtime: str, precision: str) -> str:
    """Return the stem of both files, distinct for each runtime and precision of a model."""
    return f"{name}.{runtime}.{precision}"


def load_engine_contract(path: Path) -> EngineContract:
    """Read an engine's contract.

    Args:
        path: The ``.engine.json`` file.

    Raises:
        ContractError: The file is not JSON, not an engine's contract, or in a newer format.
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
    """Find all engines of a model in a folder, without checking the engine files.

    Args:
        folder: Output folder of ``yolo-assigner export tensorrt``.
        contract: Contract of the model.

    Returns:
        Pairs of engine path and contract, ordered by name.

    Raises:
        ContractError: A contract is unreadable.
    """
    found = ((path, load_engine_contract(path)) for path in sorted(folder.glob(f"*{ENGINE_SUFFIX}")))
    return [(path.with_name(engine.file), engine) for path, engine in found if engine.name == contract.name]


def check_engine(path: Path, engine: EngineContract, model: Contract) -> None:
    """Check an engine file against its contract and against the model's.

    Args:
        path: The engine file.
        engine: Its contract.
        model: Contract of the model that the engine should compute.

    Raises:
        ContractError: The file is missing, does not match its contract, or was built from another model.
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
    """Check that an engine was built for this machine.

    Args:
        engine: Contract of the engine.
        runtime: The runtime that loads it.
        version: Version of that runtime.
        capability: Compute capability of the GPU, for example ``8.9``; None if unknown, then it is not compared.

    Raises:
        ContractError: The engine was built for another runtime, version or GPU.
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
    """Describe the compute capabilities that an engine was built for."""
    return " and ".join(engine.compute_capabilities) or f"{PORTABLE_FROM[0]}.{PORTABLE_FROM[1]} and later"


def _runs_on(engine: EngineContract, capability: str) -> bool:
    if engine.compute_capabilities:
        return capability in engine.compute_capabilities
    return tuple(int(part) for part in capability.split(".")) >= PORTABLE_FROM
