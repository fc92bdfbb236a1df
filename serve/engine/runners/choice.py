"""Which runner a model gets: the best of those that really load, or the one that was asked for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from yolo_assigner.export.contract import Contract, ContractError
from yolo_assigner.export.to_tensorrt.contract import ENGINE_FOLDER, RUNTIMES, EngineContract, find_engines
from yolo_assigner.serve.engine.runners.base import Runner
from yolo_assigner.serve.engine.runners.device import HOST, Device
from yolo_assigner.serve.engine.runners.first import Candidate, FirstThatLoads

# Best first. ONNX Runtime's own way to use TensorRT is not among them: it builds an engine anew whenever a request is
# outside the sizes that it has seen, while callers wait. Neither is torch, which a server should not need.
AUTOMATIC = ("tensorrt", "tensorrt-rtx", "onnxruntime")
DEVICES = {
    "tensorrt": ("cuda",),
    "tensorrt-rtx": ("cuda",),
    "onnxruntime": ("cuda", "cpu"),
    "onnxruntime-tensorrt": ("cuda",),
    "torch": ("cuda", "cpu"),
}
ENGINES = ("auto", *DEVICES)


class RunnerOptions(NamedTuple):
    """What the operator asked for.

    Attributes:
        engine: One of ``ENGINES``.
        device: None: a GPU where one can be used, else the CPU.
        threads: Threads of each model, 0 for one per core.
    """

    engine: str = "auto"
    device: Device | None = None
    threads: int = 0


def choose(path: Path, contract: Contract, options: RunnerOptions) -> FirstThatLoads:
    """The runners of a model that the options leave open, best first.

    Args:
        path: The ONNX file. Engines are sought beside it and in the folder ``engines`` there.
        contract: Its contract.
        options: What the operator asked for.

    Raises:
        ContractError: An engine file was asked for, and there is none.
        ValueError: The engine does not run on the device.
    """
    candidates: list[Candidate] = []
    for name, device in runtimes_of(options):
        try:
            candidates += _candidates(name, device, path, contract, options.threads)
        except ContractError as error:
            if options.engine != "auto":
                raise
            candidates.append(Candidate(name, partial(_refuse, error)))
    return FirstThatLoads(contract, candidates)


def runtimes_of(options: RunnerOptions) -> list[tuple[str, Device]]:
    """The runtimes that the options leave open, each with a device, best first; the same for all models.

    Raises:
        ValueError: The engine does not run on the device.
    """
    names = AUTOMATIC if options.engine == "auto" else (options.engine,)
    devices = [options.device] if options.device else [Device("cuda"), HOST]
    pairs = [(name, device) for name in names for device in devices if device.kind in DEVICES[name]]
    if not pairs:
        usable = " or ".join(DEVICES[options.engine])
        raise ValueError(f"engine {options.engine} does not run on device {options.device}; choose --device {usable}")
    return pairs


def _refuse(error: Exception) -> Runner:
    raise error


def _candidates(name: str, device: Device, path: Path, contract: Contract, threads: int) -> list[Candidate]:
    if name not in RUNTIMES:
        return [Candidate(f"{name} on {device}", partial(_library_runner, name, device, path, contract, threads))]
    engines = _engines(name, path, contract)
    return [Candidate(file.name, partial(_engine_runner, file, engine, contract, device)) for file, engine in engines]


def _engines(runtime: str, path: Path, contract: Contract) -> list[tuple[Path, EngineContract]]:
    """Engine files of a runtime, those as precise as the model first."""
    folders = (path.parent, path.parent / ENGINE_FOLDER)
    found = [pair for folder in folders for pair in find_engines(folder, contract) if pair[1].runtime == runtime]
    if not found:
        before = "" if contract.formulation == "dense" else "export the model with --formulation dense, then "
        raise ContractError(
            f"no engine of model {contract.name!r} for {runtime} in {folders[0]} or {folders[1]}; "
            f"{before}build one with `yolo-assigner export tensorrt {path} --runtime {runtime}`"
        )
    return sorted(found, key=lambda pair: pair[1].precision != contract.precision)


# Each runner's module imports its library, so it is imported only when its turn comes.
def _engine_runner(file: Path, engine: EngineContract, contract: Contract, device: Device) -> Runner:
    from yolo_assigner.serve.engine.runners.tensorrt_engine import TensorRtRunner

    return TensorRtRunner(file, engine, contract, device)


def _library_runner(name: str, device: Device, path: Path, contract: Contract, threads: int) -> Runner:
    if name == "torch":
        from yolo_assigner.serve.engine.runners.torch_module import TorchRunner

        return TorchRunner(path, contract, device, threads)
    from yolo_assigner.serve.engine.runners.onnx_runtime import TENSORRT, OnnxRuntimeRunner

    provider = TENSORRT if name == "onnxruntime-tensorrt" else None
    return OnnxRuntimeRunner(path, contract.default_outputs, device, provider, threads)
