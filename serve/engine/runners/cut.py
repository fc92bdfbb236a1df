"""ONNX graphs with fewer outputs: a runtime computes all of its graph, fetched or not."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx


def keep_outputs(graph: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
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
