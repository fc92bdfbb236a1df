"""Chooses the runner of a model: the first one that really runs it, or the one that the operator asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from yolo_assigner.export.contract import SPARSE_KINDS, Contract, ContractError
from yolo_assigner.export.to_tensorrt.contract import ENGINE_FOLDER, RUNTIMES, EngineContract, find_engines
from yolo_assigner.serve.inference.runners.base import DEVICES, HOST, Device, Runner, RunnerError
from yolo_assigner.serve.inference.runners.warm_up import warm_up
from yolo_assigner.serve.wire.dtypes import Array

# Best first. Not among them: ONNX Runtime's own TensorRT provider, which rebuilds an engine while callers wait
# whenever a request is outside the sizes seen so far; and torch, which a server should not need.
AUTOMATIC = ("tensorrt", "tensorrt-rtx", "onnxruntime")
logger = logging.getLogger("serve")


class RunnerOptions(NamedTuple):
    """The operator's choice.

    Attributes:
        engine: One of ``ENGINES``.
        device: None: a GPU where one can be used, else the CPU.
        threads: Threads of each model; 0: one per core.
    """

    engine: str = "auto"
    device: Device | None = None
    threads: int = 0


class Candidate(NamedTuple):
    """A runner that may be chosen.

    Attributes:
        name: Name for the log.
        make: Makes the runner without loading it; raises where that is impossible.
    """

    name: str
    make: Callable[[], Runner]


class FallbackRunner:
    """Runs the first of several runners that loads and survives the warm-up; :meth:`load` decides.

    Args:
        contract: Contract of the model.
        candidates: Best first, at least one.

    Attributes:
        candidates: As given.
    """

    def __init__(self, contract: Contract, candidates: Sequence[Candidate]) -> None:
        self.candidates = candidates
        self._contract = contract
        self._chosen: Runner | None = None

    @property
    def platform(self) -> str:
        """Platform of the chosen runner; empty before there is one."""
        return self._chosen.platform if self._chosen else ""

    @property
    def description(self) -> str:
        """Description of the chosen runner, or the names of the candidates."""
        return self._chosen.description if self._chosen else " or ".join(name for name, _ in self.candidates)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Sizes of the chosen runner."""
        return self._chosen.sizes if self._chosen else {}

    def load(self) -> None:
        """Try the candidates in order.

        Raises:
            Exception: The only candidate fails; its exception.
            RunnerError: All of several candidates fail; the text has every reason.
        """
        name, reasons = self._contract.name, []
        for candidate in self.candidates:
            try:
                runner = candidate.make()
                warm_up(runner, self._contract)
            except Exception as error:
                if len(self.candidates) == 1:
                    raise
                logger.info("model %s: %s is not taken: %s", name, candidate.name, error)
                reasons.append(f"{candidate.name}: {error}")
            else:
                logger.info("model %s: %s is taken", name, runner.description)
                self._chosen = runner
                return
        raise RunnerError(f"nothing runs model {name!r}: {'; '.join(reasons)}")

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Call the chosen runner."""
        assert self._chosen is not None  # noqa: S101 - for the type checker
        return self._chosen.infer(inputs, outputs)

    def close(self) -> None:
        """Close the chosen runner."""
        if self._chosen is not None:
            self._chosen.close()
        self._chosen = None


def choose(path: Path, contract: Contract, options: RunnerOptions) -> FallbackRunner:
    """Collect the runners of a model that the options allow, best first.

    Args:
        path: The ONNX file. Engine files are searched beside it and in the folder ``engines`` there.
        contract: Contract of the model.
        options: The operator's choice.

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
    return FallbackRunner(contract, candidates)


def runtimes_of(options: RunnerOptions) -> list[tuple[str, Device]]:
    """List the runtimes that the options allow for any model, each with a device, best first.

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
    """Find the engine files of a runtime, those of the model's precision first."""
    folders = (path.parent, path.parent / ENGINE_FOLDER)
    found = [pair for folder in folders for pair in find_engines(folder, contract) if pair[1].runtime == runtime]
    if not found and contract.kind in SPARSE_KINDS:
        raise ContractError(
            f"models of kind {contract.kind} list candidate pairs, and TensorRT has no lists; ONNX Runtime serves them"
        )
    if not found:
        before = "" if contract.formulation == "dense" else "export the model with --for tensorrt, then "
        raise ContractError(
            f"no engine of model {contract.name!r} for {runtime} in {folders[0]} or {folders[1]}; "
            f"{before}build one with `yolo-assigner export tensorrt {path} --runtime {runtime}`"
        )
    return sorted(found, key=lambda pair: pair[1].precision != contract.precision)


# Runner modules import their libraries, so each is imported only when its candidate is tried.
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
