"""The artefacts that a configuration asks for, each model before its engines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

from yolo_assigner.export.contract import DETECTOR_KINDS, ENGINE_SUFFIX, Contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.repository.config import ONNX_RUNTIME, BuildConfig, ModelTable, one_of
from yolo_assigner.export.specs import input_specs, output_specs
from yolo_assigner.export.to_tensorrt.contract import ENGINE_FOLDER, RUNTIMES, Profile, engine_stem
from yolo_assigner.export.to_tensorrt.profiles import ProfileRequest, default_profile, resolve_profile


@dataclass(frozen=True)
class OnnxTarget:
    """A model to export.

    Attributes:
        name: Name under which it is served.
        kind: One of ``yolo_assigner.export.contract.KINDS``.
        hyperparameters: Numbers that decide its results.
        implementation: ``sparse`` for ONNX Runtime, ``dense`` for TensorRT.
        precision: One of ``yolo_assigner.export.contract.PRECISIONS``.
        weights: State dict of the detector, or None.
    """

    name: str
    kind: str
    hyperparameters: Hyperparameters
    implementation: str
    precision: str
    weights: Path | None

    @property
    def label(self) -> str:
        """Name in reports."""
        return f"{self.name}.onnx"

    @property
    def files(self) -> tuple[str, str]:
        """Model and contract, relative to the repository."""
        return self.label, f"{self.name}.json"


@dataclass(frozen=True)
class EngineTarget:
    """An engine to build.

    Attributes:
        model: The model to build it from, in its precision.
        runtime: One of ``yolo_assigner.export.to_tensorrt.contract.RUNTIMES``.
        requests: Sizes as the file gives them, one profile each.
        profiles: The same with every axis.
        compute_capabilities: GPUs to build for; the runtime's default when empty.
    """

    model: OnnxTarget
    runtime: str
    requests: tuple[ProfileRequest, ...]
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...]

    @property
    def label(self) -> str:
        """Name in reports."""
        return f"{engine_stem(self.model.name, self.runtime, self.model.precision)}.engine"

    @property
    def files(self) -> tuple[str, str]:
        """Engine and contract, relative to the repository."""
        path = Path(ENGINE_FOLDER, self.label)
        return str(path), str(path.with_name(f"{path.stem}{ENGINE_SUFFIX}"))


Target = OnnxTarget | EngineTarget


def plan_targets(config: BuildConfig) -> list[Target]:
    """List all artefacts of a configuration, each once.

    Raises:
        ValueError: A hyper-parameter is wrong, two tables give one name to different artefacts, or a profile is
            unknown or does not fit a model.
    """
    targets: dict[str, Target] = {}
    for number, table in enumerate(config.file.models, start=1):
        try:
            for target in _targets(table, config):
                if targets.setdefault(target.label, target) != target:
                    raise ValueError(f"another table builds {target.label} otherwise; give one of the two a prefix")
        except ValueError as error:
            raise ValueError(f"{config.path}: [[models]] number {number}: {error}") from error
    return list(targets.values())


def _targets(table: ModelTable, config: BuildConfig) -> Iterator[Target]:
    requests = _requests(table, config)
    runtimes = [runtime for runtime in RUNTIMES if runtime in table.targets]
    for kind, classes, precision in product(table.kinds, table.num_classes, table.precisions):
        hyperparameters = _hyperparameters(table, config, kind, classes)
        weights = config.path.parent / table.weights if kind in DETECTOR_KINDS and table.weights else None
        if ONNX_RUNTIME in table.targets:
            name = _name(table, kind, classes, precision)
            yield OnnxTarget(name, kind, hyperparameters, "sparse", precision, weights)
        if runtimes:
            name = f"{_name(table, kind, classes, precision)}-dense"
            model = OnnxTarget(name, kind, hyperparameters, "dense", precision, weights)
            yield model
            profiles = tuple(resolve_profile(request, _preview(model)) for request in requests)
            for runtime in runtimes:
                capabilities = table.compute_capabilities if runtime == "tensorrt-rtx" else ()
                yield EngineTarget(model, runtime, requests, profiles, capabilities)


def _requests(table: ModelTable, config: BuildConfig) -> tuple[ProfileRequest, ...]:
    known = config.file.profiles
    names = known if table.profiles is None else table.profiles
    for name in names:
        one_of(name, known, "profiles:")
    return tuple(known[name] for name in names) or (default_profile(),)


def _hyperparameters(table: ModelTable, config: BuildConfig, kind: str, num_classes: int) -> Hyperparameters:
    given = {**config.file.hyperparameters, **table.hyperparameters}
    names = [field.name for field in fields(Hyperparameters)]
    for name in given:
        one_of(name, names, "hyperparameters: key")
        if name in ("num_classes", "scale"):
            raise ValueError(f"{name} is among the hyper-parameters; write it in the [[models]] table itself")
    if kind not in DETECTOR_KINDS and given.get("end_to_end"):
        raise ValueError(
            f"end_to_end is set, but {kind} has no detector; give {DETECTOR_KINDS[0]} a [[models]] table of its own"
        )
    return Hyperparameters(**given, num_classes=num_classes, scale=table.scale if kind in DETECTOR_KINDS else None)


def _name(table: ModelTable, kind: str, classes: int, precision: str) -> str:
    scale = table.scale if kind in DETECTOR_KINDS else None
    parts = (table.prefix, kind, scale, f"c{classes}", precision if precision != "fp32" else None)
    return "-".join(part for part in parts if part)


def _preview(model: OnnxTarget) -> Contract:
    """The model's contract as far as it is known before the export: enough to resolve profiles."""
    inputs = input_specs(model.kind, model.hyperparameters)
    outputs = output_specs(model.kind, model.hyperparameters)
    known = model.hyperparameters.as_contract()
    return Contract(model.name, model.kind, model.label, "", model.implementation, known, inputs, outputs, {})
