"""A model repository of Triton Inference Server: one folder per model, with its configuration and version 1."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from yolo_assigner.export.contract import Contract, ContractError, TensorSpec
from yolo_assigner.export.to_tensorrt.contract import ENGINE_FOLDER, EngineContract, check_engine, find_engines

CONFIG = "config.pbtxt"
# By backend: what it calls the file.
FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
# Begins the keys of our parameters.
SPACE = "yolo_assigner"


@dataclass(frozen=True)
class TritonSource:
    """What becomes a model of Triton.

    Attributes:
        name: Of the model.
        backend: Which of Triton's runs it.
        file: ONNX file or engine.
        inputs: In the file's types.
        outputs: In the file's types.
        profiles: Of the engine.
        parameters: What it was built from.
        remark: For people, when it is not what they preferred, or needs something.
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
    """ONNX file or engine.

    Args:
        path: The ONNX file. Engines are sought beside it and in the folder ``engines`` there.
        contract: Its contract.
        prefer_engine: Take an engine of ``tensorrt`` where there is one that Triton can load.

    Raises:
        ContractError: Triton cannot load what was chosen, or the engine is not what its contract describes.
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
    """The first engine that is as precise as the model."""
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
    """Write a model's folder, whole or not at all.

    Args:
        source: The model.
        repository: Made when it is not there; other models in it stay.
        force: Replace a folder that was not written by this function, too.

    Returns:
        The model's folder.

    Raises:
        ValueError: The folder is somebody else's, or cannot be written.
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
        # Not inside the repository, where Triton would take it for a model.
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


# Every file of ours begins with it.
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


def render_config(
    name: str,
    backend: str,
    inputs: Iterable[TensorSpec],
    outputs: Iterable[TensorSpec],
    *,
    profiles: int = 1,
    parameters: Mapping[str, str],
) -> str:
    """The text of a configuration.

    ``max_batch_size`` is 0: Triton hands requests over as they come, and shapes are written in full. With any other
    number it would merge requests, for which every tensor needs B as its first axis; ``anc_points`` has none, and
    merged losses would be one loss of all. With inputs and outputs given Triton completes nothing by itself, which
    would take A for a batch axis.

    Args:
        name: Of the model and of its folder.
        backend: ``onnxruntime`` or ``tensorrt``.
        inputs: In the file's types.
        outputs: In the file's types.
        profiles: Of the engine; Triton chooses among those it is told of.
        parameters: Strings for people and tools, which Triton passes on.
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
    # Triton knows no shape without axes. Its ONNX Runtime backend takes [1] for a scalar; an empty reshape, the way
    # where requests are merged, is refused where they are not.
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
    """A string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
