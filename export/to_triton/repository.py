"""Lay out a model repository of Triton Inference Server: per model a folder with its configuration and version 1."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from yolo_assigner.export.contract import Contract, ContractError, TensorSpec
from yolo_assigner.export.to_tensorrt.contract import ENGINE_FOLDER, EngineContract, check_engine, find_engines

CONFIG = "config.pbtxt"
# The file name that each of Triton's backends looks for.
FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
# Prefix of the keys of this project's parameters.
SPACE = "yolo_assigner"
# First line of every configuration written here.
MARK = "# Written by `yolo-assigner export triton`."
DYNAMIC = -1
TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "bool": "TYPE_BOOL",
}


@dataclass(frozen=True)
class TritonSource:
    """The file that becomes a model of Triton, and its configuration.

    Attributes:
        name: Name of the model.
        backend: Triton's backend that runs it, a key of ``FILES``.
        file: Path of the ONNX file or engine.
        inputs: Inputs, with the types that the file has.
        outputs: Outputs, with the types that the file has.
        profiles: Number of the engine's optimisation profiles; 1 for an ONNX file.
        parameters: What the file was built from.
        remark: Note for the user when the file is not the preferred one or needs a certain Triton; may be empty.
    """

    name: str
    backend: str
    file: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: int
    parameters: Mapping[str, str]
    remark: str = ""


def choose_source(path: Path, contract: Contract, *, prefer_engine: bool) -> TritonSource:
    """Choose between a model's ONNX file and its engine.

    Args:
        path: The ONNX file; engines are looked for beside it and in the folder ``engines`` there.
        contract: Contract of the model.
        prefer_engine: Take an engine of ``tensorrt`` where there is one that Triton can load.

    Raises:
        ContractError: Triton cannot load the chosen file, or the engine is not the one that its contract describes.
    """
    if not prefer_engine:
        return _from_onnx(path, contract)
    engine = _find_engine(path, contract)
    if engine is None:
        return _from_onnx(path, contract, "; it has no engine of tensorrt")
    scalars = [spec.name for spec in engine[1].outputs if not spec.axes]
    if scalars:
        return _from_onnx(path, contract, f"; Triton loads no engine with a scalar, which {scalars[0]} is")
    return _from_engine(*engine, contract)


def _find_engine(path: Path, contract: Contract) -> tuple[Path, EngineContract] | None:
    """Find the first engine of the model's own precision."""
    for folder in (path.parent, path.parent / ENGINE_FOLDER):
        for file, engine in find_engines(folder, contract):
            if engine.runtime == "tensorrt" and engine.precision == contract.precision:
                return file, engine
    return None


def _from_onnx(path: Path, contract: Contract, remark: str = "") -> TritonSource:
    for spec in contract.inputs:
        if spec.dtype == "bfloat16":
            raise ContractError(
                f"{contract.name} takes {spec.name} in bfloat16, which Triton's ONNX Runtime backend does not know; "
                "leave it out with --models, or export it in fp16 or fp32"
            )
    parameters = _parameters(contract)
    return TritonSource(contract.name, "onnxruntime", path, contract.inputs, contract.outputs, 1, parameters, remark)


def _from_engine(path: Path, engine: EngineContract, contract: Contract) -> TritonSource:
    check_engine(path, engine, contract)
    own = {"engine_sha256": engine.sha256, "tensorrt": engine.runtime_version}
    parameters = {**_parameters(contract), **{f"{SPACE}.{key}": value for key, value in own.items()}}
    remark = f"; for a Triton with TensorRT {engine.runtime_version}"
    inputs, outputs, profiles = engine.inputs, engine.outputs, len(engine.profiles)
    return TritonSource(contract.name, "tensorrt", path, inputs, outputs, profiles, parameters, remark)


def _parameters(contract: Contract) -> dict[str, str]:
    values = {
        "kind": contract.kind,
        "formulation": contract.formulation,
        "precision": contract.precision,
        "sha256": contract.sha256,
        "version": contract.versions["yolo-assigner"],
    }
    return {f"{SPACE}.{key}": value for key, value in values.items()}


def lay_out(source: TritonSource, repository: Path, *, force: bool = False) -> Path:
    """Write a model's folder, completely or not at all.

    Args:
        source: The model.
        repository: Triton's repository, made when it is not there; other models in it stay.
        force: Also replace a folder that was not written by this function.

    Returns:
        The model's folder.

    Raises:
        ValueError: The folder was not written by this function, or cannot be written.
    """
    target = repository / source.name
    if target.exists() and not force and not _is_ours(target):
        raise ValueError(
            f"{target} was not written by `yolo-assigner export triton`; choose another --out, or replace it with "
            "--force"
        )
    config = render_config(
        source.name,
        source.backend,
        source.inputs,
        source.outputs,
        profiles=source.profiles,
        parameters=source.parameters,
    )
    try:
        repository.mkdir(parents=True, exist_ok=True)
        # Outside the repository, where Triton would take the temporary folder for a model.
        with tempfile.TemporaryDirectory(prefix=f".{repository.name}-", dir=repository.resolve().parent) as beside:
            new = Path(beside, "new")
            (new / "1").mkdir(parents=True)
            shutil.copyfile(source.file, new / "1" / FILES[source.backend])
            (new / CONFIG).write_text(config, encoding="utf-8")
            _replace(target, new, Path(beside, "old"))
    except OSError as error:
        raise ValueError(
            f"{target} cannot be written ({error}); the folder around {repository} must be writable and of the same "
            "file system: choose an --out for which that is so"
        ) from error
    return target


def _replace(target: Path, new: Path, old: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise


def _is_ours(folder: Path) -> bool:
    try:
        return (folder / CONFIG).read_text(encoding="utf-8").startswith(MARK)
    except (OSError, ValueError):
        return False


def render_config(
    name: str,
    backend: str,
    inputs: Iterable[TensorSpec],
    outputs: Iterable[TensorSpec],
    *,
    profiles: int = 1,
    parameters: Mapping[str, str],
) -> str:
    """Write a model's configuration as text.

    ``max_batch_size`` is 0: Triton does not batch requests, and shapes are written in full. Any other number would
    enable dynamic batching, for which every tensor needs B as its first axis; that of ``anc_points`` may be 1, and the
    loss of a merged batch is a single scalar for all its requests. Inputs and outputs are given because Triton's
    auto-completion would take A for a batch axis.

    Args:
        name: Name of the model and of its folder.
        backend: ``onnxruntime`` or ``tensorrt``.
        inputs: Inputs, with the types that the file has.
        outputs: Outputs, with the types that the file has.
        profiles: Number of the engine's optimisation profiles; Triton uses only those that are listed.
        parameters: Strings for people and tools, which Triton returns with the configuration.
    """
    lines = [MARK, f"name: {quote(name)}", f"backend: {quote(backend)}", "max_batch_size: 0"]
    lines += [line for spec in inputs for line in _tensor("input", spec)]
    lines += [line for spec in outputs for line in _tensor("output", spec)]
    lines.append("version_policy { specific { versions: [ 1 ] } }")
    if profiles > 1:
        numbers = ", ".join(quote(str(number)) for number in range(profiles))
        lines.append(f"instance_group [ {{ kind: KIND_GPU profile: [ {numbers} ] }} ]")
    for key, value in parameters.items():
        lines.append(f"parameters {{ key: {quote(key)} value {{ string_value: {quote(value)} }} }}")
    return "\n".join([*lines, ""])


def _tensor(kind: str, spec: TensorSpec) -> list[str]:
    # Triton requires a shape of at least one axis. Its ONNX Runtime backend takes [1] for a scalar; an empty reshape,
    # the documented way, is accepted only with dynamic batching.
    axes = spec.axes or (1,)
    dims = ", ".join(str(axis if isinstance(axis, int) else DYNAMIC) for axis in axes)
    return [
        f"{kind} {{",
        f"  name: {quote(spec.name)}",
        f"  data_type: {TYPES[spec.dtype]}",
        f"  dims: [ {dims} ]",
        "}",
    ]


def quote(text: str) -> str:
    """Quote a string for protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
