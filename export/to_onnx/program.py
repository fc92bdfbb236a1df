"""Tracing of a module to a program that ``torch.onnx`` translates as it is.

``torch.onnx.export`` decomposes what it has traced, which traces everything twice more: half of the time of an export.
Here the few operators without a translation are replaced by their equals in the traced graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

_aten: Any = torch.ops.aten


class TranslatableProgram(ExportedProgram):
    """A program that is decomposed before it is translated only where it has to be."""

    def run_decompositions(
        self, decomp_table: dict[Any, Callable[..., Any]] | None = None, decompose_custom_triton_ops: bool = False
    ) -> ExportedProgram:
        """Return the program itself, unless an operator has no translation or writes in place.

        Args:
            decomp_table: Decompositions of the operators without a translation.
            decompose_custom_triton_ops: As torch has it.
        """
        nodes = [node for graph in _graphs(self.graph_module) for node in graph.nodes]
        if any(_writes(node) or node.target in (decomp_table or {}) for node in nodes):
            decomposed: ExportedProgram = super().run_decompositions(decomp_table, decompose_custom_triton_ops)
            return decomposed
        return self


class Call(NamedTuple):
    """A call of an operator in a traced graph."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}


def trace(module: nn.Module, example: tuple[Any, ...], dynamic_shapes: Sequence[Any]) -> TranslatableProgram:
    """Trace a module's forward, without gradients, to operators that ``torch.onnx`` translates.

    Args:
        module: The module, in eval mode.
        example: Its inputs.
        dynamic_shapes: Of each input, as ``torch.export.export`` takes them.
    """
    # Without gradients, so that nothing is traced that switches them off.
    with _no_stack_traces(), torch.no_grad():
        program = torch.export.export(
            module,
            example,
            dynamic_shapes=tuple(dynamic_shapes),
            strict=False,
            # A relation between axes, such as A >= 1, is no reason to fix the axes.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    for graph in _graphs(program.graph_module):
        _replace_operators(graph)
    return TranslatableProgram(
        program.graph_module,
        program.graph,
        program.graph_signature,
        program.state_dict,
        program.range_constraints,
        program.module_call_graph,
        constants=program.constants,
        verifiers=program.verifiers,
    )


@contextmanager
def _no_stack_traces() -> Iterator[None]:
    """Trace without the stack of each operation, a tenth of the time; the exported model does not hold them."""
    before = fx.config.do_not_emit_stack_traces
    fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx.config.do_not_emit_stack_traces = before


def _graphs(module: fx.GraphModule) -> list[fx.Graph]:
    """The graph of a module, and those of the bodies of its loops."""
    return [part.graph for part in module.modules() if isinstance(part, fx.GraphModule)]


def _replace_operators(graph: fx.Graph) -> None:
    for node in graph.nodes:
        replace = _REPLACEMENTS.get(node.target)
        if replace is not None and not (_writes(node) and _is_read_otherwise(node.args[0], node)):
            node.target, node.args, kwargs = replace(*node.args, **node.kwargs)
            node.kwargs = dict(kwargs)
    for node in reversed(graph.nodes):
        # Checks of axes, which the exporter removes, but not what they are computed from.
        is_unused = not node.users and node.op == "call_function" and not _writes(node)
        if is_unused or str(node.target).startswith("aten._assert_"):
            graph.erase_node(node)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _is_read_otherwise(x: fx.Node, writer: fx.Node) -> bool:
    """Whether what a node writes to a tensor is seen by others than the readers of the node itself."""
    return _is_view(x) or any(user is not writer and (writer < user or _is_view(user)) for user in x.users)


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(result.alias_info is not None for result in schema.returns)


def _rank(x: fx.Node) -> int:
    value: Tensor = x.meta["val"]
    return value.dim()


def _renamed(target: Callable[..., Any]) -> Callable[..., Call]:
    def replace(*args: Any, **kwargs: Any) -> Call:
        return Call(target, args, kwargs)

    return replace


def _to_dtype(x: fx.Node, dtype: torch.dtype, *_: Any) -> Call:
    if x.meta["val"].dtype == dtype:
        return Call(_aten.alias.default, (x,))
    return Call(_aten._to_copy.default, (x,), {"dtype": dtype})


def _square(x: fx.Node) -> Call:
    return Call(_aten.pow.Tensor_Scalar, (x, 2))


def _subtract_from(x: fx.Node, minuend: float) -> Call:
    return Call(_aten.sub.Tensor, (minuend, x))


def _copy(x: fx.Node, source: fx.Node) -> Call:
    if x.meta["val"].dtype != source.meta["val"].dtype:
        raise ValueError(f"{source} is copied to another type, {x}; add a translation to {__name__}")
    return Call(_aten.expand_as.default, (source, x))


def _index_add(x: fx.Node, dim: int, index: fx.Node, source: fx.Node) -> Call:
    return Call(_aten.index_put.default, (x, [*[None] * (dim % _rank(x)), index], source, True))


def _index_copy(x: fx.Node, dim: int, index: fx.Node, source: fx.Node) -> Call:
    return Call(_aten.index_put.default, (x, [*[None] * (dim % _rank(x)), index], source))


def _move_axis(x: fx.Node, source: int, destination: int) -> Call:
    order = [axis for axis in range(_rank(x)) if axis != source % _rank(x)]
    order.insert(destination % _rank(x), source % _rank(x))
    return Call(_aten.permute.default, (x, order))


def _narrow(x: fx.Node, dim: int, start: int, length: int) -> Call:
    if isinstance(start, fx.Node) or isinstance(length, fx.Node):
        return Call(_aten.narrow.default, (x, dim, start, length))
    return Call(_aten.slice.Tensor, (x, dim, start, start + length))


def _squeeze(x: fx.Node, dims: Sequence[int]) -> Call:
    (dim,) = dims
    return Call(_aten.squeeze.dim, (x, dim))


_REPLACEMENTS: dict[Any, Callable[..., Call]] = {
    _aten.__and__.Tensor: _renamed(_aten.bitwise_and.Tensor),
    _aten.__or__.Tensor: _renamed(_aten.bitwise_or.Tensor),
    _aten.copy_.default: _copy,
    _aten.detach_.default: _renamed(_aten.alias.default),
    _aten.index_add.default: _index_add,
    _aten.index_copy.default: _index_copy,
    _aten.item.default: _renamed(_aten._local_scalar_dense.default),
    _aten.movedim.int: _move_axis,
    _aten.narrow.default: _narrow,
    _aten.rsub.Scalar: _subtract_from,
    _aten.square.default: _square,
    _aten.squeeze.dims: _squeeze,
    _aten.to.dtype: _to_dtype,
}
