"""ONNX Runtime, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime

from yolo_assigner.export.runtimes import why_unsupported
from yolo_assigner.serve.inference.runners.base import HOST, Device, RunnerError
from yolo_assigner.serve.wire.dtypes import Array

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# Each session has threads and memory of its own, so there are no more than a few.
MOST_SESSIONS = 4
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class OnnxRuntimeRunner:
    """A model in ONNX Runtime.

    A session runs all of its graph, fetched or not. So there is one for the whole graph, one for the outputs that are
    sent by default, and one for each other set of outputs as it is first asked for, until there are ``MOST_SESSIONS``;
    what comes later runs in the smallest session that has its outputs.

    Args:
        path: The model file.
        default: Outputs that are sent when none is asked for.
        device: Where to compute.
        provider: Execution provider; the device's own when None.
        threads: Threads inside one operator; 0 lets ONNX Runtime take one per core.
    """

    platform = "onnxruntime_onnx"
    sizes: Mapping[str, int] = {}

    def __init__(
        self,
        path: Path,
        default: Collection[str],
        device: Device = HOST,
        provider: str | None = None,
        threads: int = 0,
    ) -> None:
        self._path = path
        self._default = frozenset(default)
        self._device = device
        self._provider = provider or (CPU if device.kind == "cpu" else CUDA)
        self._threads = threads
        self._graph = onnx.ModelProto()
        self._sessions: dict[frozenset[str], Any] = {}

    @property
    def description(self) -> str:
        """Version, execution provider and device."""
        return f"ONNX Runtime {onnxruntime.__version__}, {self._provider}, {self._device}"

    def load(self) -> None:
        """Read the file and build the sessions of all outputs and of the default ones.

        Raises:
            RunnerError: ONNX Runtime is too old, or does not have the execution provider.
        """
        reason = why_unsupported(onnxruntime.__version__)
        if reason is not None:
            raise RunnerError(reason)
        available = onnxruntime.get_available_providers()
        if self._provider not in available:
            raise RunnerError(
                f"this onnxruntime has no {self._provider}, only {', '.join(available)}; "
                "install onnxruntime-gpu in its place: pip install 'yolo-assigner[gpu]'"
            )
        if self._provider != CPU:
            onnxruntime.preload_dlls()  # finds CUDA's libraries where pip put them
        self._graph = onnx.load(self._path)
        every = frozenset(output.name for output in self._graph.graph.output)
        self._sessions = {names: self._session(names) for names in {every, self._default}}

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute the named outputs in the smallest session that has them."""
        session = self._session_of(frozenset(outputs))
        binding = session.io_binding()
        held = {name: np.ascontiguousarray(array) for name, array in inputs.items()}  # read while the session runs
        for name, array in held.items():
            # On a GPU this copies to it, into memory that the session keeps from call to call.
            binding.bind_input(name, "cpu", 0, _element_type(array), array.shape, array.ctypes.data)
        for name in outputs:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        return {name: value.numpy() for name, value in zip(outputs, binding.get_outputs(), strict=True)}

    def close(self) -> None:
        """Drop all sessions."""
        self._sessions.clear()

    def _session_of(self, names: frozenset[str]) -> Any:
        if names not in self._sessions and len(self._sessions) < MOST_SESSIONS:
            self._sessions[names] = self._session(names)
        return self._sessions[min((known for known in self._sessions if known >= names), key=len)]

    def _session(self, names: frozenset[str]) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 4  # failures come back as exceptions; the server logs those itself
        # Idle threads of the other sessions must not burn the cores that the working one needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = prune_outputs(self._graph, names).SerializeToString()
        # The fallback prints to standard output and would run on the CPU without a word to us.
        session = onnxruntime.InferenceSession(graph, options, providers=self._providers(), enable_fallback=0)
        if self._provider not in session.get_providers():
            raise RunnerError(
                f"{self._provider} did not start, ONNX Runtime took {', '.join(session.get_providers())}; "
                "what it printed before this names the missing driver or library"
            )
        return session

    def _providers(self) -> list[tuple[str, dict[str, int]]]:
        """The provider and those that take the operators that it has not, in the order in which they are asked."""
        gpu = {"device_id": self._device.number}
        # TensorFloat-32 would round products to three digits.
        options = {TENSORRT: gpu, CUDA: {**gpu, "use_tf32": 0}, CPU: {}}
        names = list(options)
        return [(name, options[name]) for name in names[names.index(self._provider) :]]


def _element_type(array: Array) -> Any:
    """The type as numpy has it, or ONNX's number of the one that numpy does not have."""
    return int(onnx.TensorProto.BFLOAT16) if array.dtype == BFLOAT16 else array.dtype


def prune_outputs(graph: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy with these outputs alone, and without the nodes that only the others need. Inputs stay as they are."""
    smaller = onnx.ModelProto()
    smaller.CopyFrom(graph)
    kept = [output for output in graph.graph.output if output.name in names]
    needed = {output.name for output in kept}
    nodes = []
    for node in reversed(graph.graph.node):  # a graph lists its nodes in an order in which they can run
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_reads(node))
    del smaller.graph.output[:], smaller.graph.node[:]
    smaller.graph.output.extend(kept)
    smaller.graph.node.extend(reversed(nodes))
    return smaller


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, also from inside its branches and loops."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)
            yield from (output.name for output in graph.output)
