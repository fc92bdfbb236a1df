"""The runner of ONNX Runtime, on the CPU or a GPU."""

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
MOST_SESSIONS = 4  # each has threads and memory of its own
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class OnnxRuntimeRunner:
    """Runs a model in ONNX Runtime.

    A session computes its whole graph, whatever is fetched. So there is one session for all outputs, one for the
    default outputs, and one for each other set of outputs when it is first requested, up to ``MOST_SESSIONS``. Further
    sets are computed in the smallest session that has their outputs.

    Args:
        path: The model file.
        default: Names of the default outputs.
        device: Where to compute.
        provider: Execution provider; None: the device's own.
        threads: Threads inside one operator; 0: one per core.

    Attributes:
        sessions: Sessions by the names of their outputs.
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
        self.sessions: dict[frozenset[str], Any] = {}

    @property
    def description(self) -> str:
        """Version, execution provider and device."""
        return f"ONNX Runtime {onnxruntime.__version__}, {self._provider}, {self._device}"

    def load(self) -> None:
        """Read the file and make the sessions of all outputs and of the default ones.

        Raises:
            RunnerError: ONNX Runtime is too old, or lacks the execution provider.
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
        self.sessions = {names: self._session(names) for names in {every, self._default}}

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute the named outputs in the smallest session that has them."""
        session = self.session_of(frozenset(outputs))
        binding = session.io_binding()
        contiguous = {name: np.ascontiguousarray(array) for name, array in inputs.items()}  # kept while they are read
        for name, array in contiguous.items():
            # For a GPU this copies, into memory that the session reuses from call to call.
            binding.bind_input(name, "cpu", 0, _element_type(array), array.shape, array.ctypes.data)
        for name in outputs:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        return {name: value.numpy() for name, value in zip(outputs, binding.get_outputs(), strict=True)}

    def close(self) -> None:
        """Release all sessions."""
        self.sessions.clear()

    def session_of(self, names: frozenset[str]) -> Any:
        """The session that computes these outputs."""
        if names not in self.sessions and len(self.sessions) < MOST_SESSIONS:
            self.sessions[names] = self._session(names)
        return self.sessions[min((known for known in self.sessions if known >= names), key=len)]

    def _session(self, names: frozenset[str]) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 4  # failures are raised, and the server logs those
        # Idle threads of the other sessions must not burn the cores that the working one needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = prune_outputs(self._graph, names).SerializeToString()
        # ONNX Runtime's own fallback would silently compute on the CPU.
        session = onnxruntime.InferenceSession(
            graph, options, providers=execution_providers(self._provider, self._device), enable_fallback=0
        )
        if self._provider not in session.get_providers():
            raise RunnerError(
                f"{self._provider} did not start, ONNX Runtime took {', '.join(session.get_providers())}; "
                "what it printed before this names the missing driver or library"
            )
        return session


def execution_providers(provider: str, device: Device) -> list[tuple[str, dict[str, int]]]:
    """List a provider and those that take over the operators it lacks, with their options, in the order of asking."""
    gpu = {"device_id": device.number}
    # TensorFloat-32 would round products to three digits.
    options = {TENSORRT: gpu, CUDA: {**gpu, "use_tf32": 0}, CPU: {}}
    names = list(options)
    return [(name, options[name]) for name in names[names.index(provider) :]]


def _element_type(array: Array) -> Any:
    """The array's numpy type, or ONNX's number of bfloat16, which ONNX Runtime does not know as a numpy type."""
    return int(onnx.TensorProto.BFLOAT16) if array.dtype == BFLOAT16 else array.dtype


def prune_outputs(graph: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Copy a model with some of its outputs and the nodes that they need. Inputs stay as they are.

    Not ``onnx.utils.Extractor``, which overlooks the names that nodes read inside their branches and loops.
    """
    smaller = onnx.ModelProto()
    smaller.CopyFrom(graph)
    kept = [output for output in graph.graph.output if output.name in names]
    needed = {output.name for output in kept}
    nodes = []
    for node in reversed(graph.graph.node):  # nodes are sorted topologically
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_reads(node))
    del smaller.graph.output[:], smaller.graph.node[:]
    smaller.graph.output.extend(kept)
    smaller.graph.node.extend(reversed(nodes))
    return smaller


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, also inside its branches and loops."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)
            yield from (output.name for output in graph.output)
