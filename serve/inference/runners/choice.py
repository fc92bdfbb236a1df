"""Which runner a model gets: the best of those that really load, or the one that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from yolo_assigner.export.contract import Contract, ContractError
from yolo_assigner.export.to_tensorrt.contract import ENGINE_FOLDER, RUNTIMES, EngineContract, find_engines
from yolo_assigner.serve.inference.runners.base import HOST, Device, Runner, RunnerError
from yolo_assigner.serve.inference.runners.warm_up import try_out
from yolo_assigner.serve.wire.dtypes import Array

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
        before = "" if contract.formulation == "dense" else "export the model with --for tensorrt, then "
        raise ContractError(
            f"no engine of model {contract.name!r} for {runtime} in {folders[0]} or {folders[1]}; "
            f"{before}build one with `yolo-assigner export tensorrt {path} --runtime {runtime}`"
        )
    return sorted(found, key=lambda pair: pair[1].precision != contract.precision)


# Each runner's module imports its library, so it is imported only when its turn comes.
def _engine_runner(file: Path, engine: EngineContract, contract: Contract, device: Device) -> Runner:
    from yolo_assigner.serve.inference.runners.tensorrt import TensorRtRunner

    return TensorRtRunner(file, engine, contract, device)


def _library_runner(name: str, device: Device, path: Path, contract: Contract, threads: int) -> Runner:
    if name == "torch":
        from yolo_assigner.serve.inference.runners.torch_module import TorchRunner

        return TorchRunner(path, contract, device, threads)
    from yolo_assigner.serve.inference.runners.onnx_runtime import TENSORRT, OnnxRuntimeRunner

    provider = TENSORRT if name == "onnxruntime-tensorrt" else None
    return OnnxRuntimeRunner(path, contract.default_outputs, device, provider, threads)


logger = logging.getLogger("serve")


class Candidate(NamedTuple):
    """A runner that may be taken.

    Attributes:
        name: For the log.
        make: Makes it, not yet loaded; raises when that is impossible.
    """

    name: str
    make: Callable[[], Runner]


class FirstThatLoads:
    """The first of several runners that loads and runs. Nothing is decided before :meth:`load`.

    Args:
        contract: Of the model.
        candidates: Best first, at least one.
    """

    def __init__(self, contract: Contract, candidates: Sequence[Candidate]) -> None:
        self._contract = contract
        self._candidates = candidates
        self._chosen: Runner | None = None

    @property
    def platform(self) -> str:
        """That of the chosen runner, empty before there is one."""
        return self._chosen.platform if self._chosen else ""

    @property
    def description(self) -> str:
        """That of the chosen runner, else what may be chosen."""
        return self._chosen.description if self._chosen else " or ".join(name for name, _ in self._candidates)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Those of the chosen runner."""
        return self._chosen.sizes if self._chosen else {}

    def load(self) -> None:
        """Try one after the other.

        Raises:
            Exception: That of the only candidate.
            RunnerError: There are several, and none can be used; the text has every reason.
        """
        name, reasons = self._contract.name, []
        for candidate in self._candidates:
            try:
                runner = candidate.make()
                try_out(runner, self._contract)
            except Exception as error:
                if len(self._candidates) == 1:
                    raise
                logger.info("model %s: %s is not taken: %s", name, candidate.name, error)
                reasons.append(f"{candidate.name}: {error}")
            else:
                logger.info("model %s: %s is taken", name, runner.description)
                self._chosen = runner
                return
        raise RunnerError(f"nothing runs model {name!r}: {'; '.join(reasons)}")

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """As the chosen runner."""
        assert self._chosen is not None  # noqa: S101 - for the type checker
        return self._chosen.infer(inputs, outputs)

    def close(self) -> None:
        """Close the chosen runner."""
        if self._chosen is not None:
            self._chosen.close()
        self._chosen = None
