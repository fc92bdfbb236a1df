"""From a configuration to the artefacts that are to be there, each model before its engines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from yolo_assigner.export.contract import ENGINE_SUFFIX, Contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.repository.config import DETECTOR, ONNX_RUNTIME, BuildConfig, ModelTable
from yolo_assigner.export.specs import input_specs, output_specs
from yolo_assigner.export.to_tensorrt.contract import ENGINE_FOLDER, RUNTIMES, Profile, engine_stem
from yolo_assigner.export.to_tensorrt.profiles import ProfileRequest, default_profile, resolve_profile


@dataclass(frozen=True)
class OnnxTarget:
    """A model to export.

    Attributes:
        name: Under which it is served.
        kind: One of ``yolo_assigner.export.contract.KINDS``.
        numbers: Hyper-parameters.
        formulation: ``sparse`` for ONNX Runtime, ``dense`` for TensorRT.
        precision: One of ``yolo_assigner.export.contract.PRECISIONS``.
        weights: State dict of the detector, or None.
    """

    name: str
    kind: str
    numbers: Hyperparameters
    formulation: str
    precision: str
    weights: Path | None

    @property
    def label(self) -> str:
        """What it is called in reports."""
        return f"{self.name}.onnx"

    @property
    def files(self) -> tuple[str, ...]:
        """Model and contract, relative to the repository."""
        return self.label, f"{self.name}.json"


@dataclass(frozen=True)
class EngineTarget:
    """An engine to build.

    Attributes:
        model: What it is built from, in its precision.
        runtime: One of ``yolo_assigner.export.to_tensorrt.contract.RUNTIMES``.
        requests: Sizes as they were asked for, one profile each.
        profiles: The same with every axis.
        compute_capabilities: GPUs it is for; empty: the runtime's default.
    """

    model: OnnxTarget
    runtime: str
    requests: tuple[ProfileRequest, ...]
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...]

    @property
    def label(self) -> str:
        """What it is called in reports."""
        return f"{engine_stem(self.model.name, self.runtime, self.model.precision)}.engine"

    @property
    def files(self) -> tuple[str, ...]:
        """Engine and contract, relative to the repository."""
        path = Path(ENGINE_FOLDER, self.label)
        return str(path), str(path.with_name(f"{path.stem}{ENGINE_SUFFIX}"))


Target = OnnxTarget | EngineTarget


def plan_targets(config: BuildConfig) -> list[Target]:
    """All artefacts of a configuration.

    Raises:
        ValueError: Two tables give one name to different artefacts, or a profile does not fit a model.
    """
    targets: dict[str, Target] = {}
    for number, model in enumerate(config.models, start=1):
        where = f"{config.path}: [[models]] number {number}"
        try:
            for target in _targets(model, config):
                if targets.setdefault(target.label, target) != target:
                    raise ValueError(f"another table builds {target.label} otherwise; give one of the two a prefix")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return list(targets.values())


def _targets(table: ModelTable, config: BuildConfig) -> Iterator[Target]:
    names = config.profiles if table.profiles is None else table.profiles
    requests = tuple(config.profiles[name] for name in names) or (default_profile(),)
    runtimes = [runtime for runtime in RUNTIMES if runtime in table.targets]
    for kind, classes, precision in product(table.kinds, table.num_classes, table.precisions):
        if ONNX_RUNTIME in table.targets:
            yield _model(table, config, kind, classes, precision, "sparse")
        if runtimes:
            model = _model(table, config, kind, classes, precision, "dense")
            yield model
            profiles = tuple(resolve_profile(request, _preview(model)) for request in requests)
            for runtime in runtimes:
                capabilities = table.compute_capabilities if runtime == "tensorrt-rtx" else ()
                yield EngineTarget(model, runtime, requests, profiles, capabilities)


def _model(
    table: ModelTable, config: BuildConfig, kind: str, classes: int, precision: str, formulation: str
) -> OnnxTarget:
    of_detector = kind == DETECTOR
    parts = (
        table.prefix,
        kind,
        f"{table.scale}" if of_detector else "",
        f"c{classes}",
        precision if precision != "fp32" else "",
        formulation if formulation != "sparse" else "",
    )
    weights = config.path.parent / table.weights if of_detector and table.weights else None
    name = "-".join(part for part in parts if part)
    return OnnxTarget(name, kind, table.numbers(kind, classes), formulation, precision, weights)


def _preview(model: OnnxTarget) -> Contract:
    """Its contract as far as it is known before the export: enough to choose sizes by."""
    numbers = model.numbers
    inputs, outputs = input_specs(model.kind, numbers), output_specs(model.kind, numbers)
    return Contract(
        model.name, model.kind, model.label, "", model.formulation, numbers.as_contract(), inputs, outputs, {}
    )
