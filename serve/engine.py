"""What runs a model. The rest of the server knows only the protocol :class:`Engine`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import onnx
import onnxruntime

from serve.datatypes import Array


class Engine(Protocol):
    """A model that can be run. Called from one thread at a time."""

    def load(self) -> None:
        """Make ready for :meth:`infer`; may take long. Raises whatever the runtime raises on a bad file."""

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute the named outputs.

        Args:
            inputs: All inputs of the model, in its types.
            outputs: Names of outputs.

        Returns:
            One array per name, owned by the caller.
        """


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU.

    A session runs all of its graph, fetched or not. So there are two: one of the whole graph, and one without the
    heavy outputs and what only they need.

    Args:
        path: The model file.
        light: Outputs of the smaller session.
        threads: Threads inside one operator; 0 lets ONNX Runtime take one per core.
    """

    def __init__(self, path: Path, light: Sequence[str], threads: int = 0) -> None:
        self._path = path
        self._light = frozenset(light)
        self._threads = threads
        self._small: Any = None
        self._whole: Any = None

    def load(self) -> None:
        """Read the file and build both sessions."""
        graph = onnx.load(self._path)
        every = {output.name for output in graph.graph.output}
        self._whole = self._session(graph)
        self._small = self._whole if self._light >= every else self._session(_without(graph, every - self._light))

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute the named outputs in the smallest session that has them."""
        session = self._small if self._light.issuperset(outputs) else self._whole
        values = session.run(list(outputs), dict(inputs))
        return dict(zip(outputs, values, strict=True))

    def _session(self, graph: onnx.ModelProto) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 4  # failures come back as exceptions; the server logs those itself
        # Idle threads of the other sessions must not burn the cores that the working one needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _without(graph: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """A copy with fewer outputs, and without the nodes that only those need: the runtime would run them."""
    smaller = onnx.ModelProto()
    smaller.CopyFrom(graph)
    kept = [output for output in graph.graph.output if output.name not in names]
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
