"""Lists of segments of different lengths, one behind the other.

**In a graph no list is ever empty.** Runtimes crash on operators over empty lists, or give them a wrong shape (ONNX
Runtime's TopK before 1.31, ReduceSum before 1.32). So while a graph is exported, the last entry of every list is a
filler: an entry of the empty slot that is appended to the ground truth, without any effect. The functions
:func:`keep_last` and :func:`lengthen_last` put it there; elsewhere they do nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST_SIZE = 2**40


def segment_of(length: Tensor, total: int) -> Tensor:
    """The segment that each entry belongs to: 0, 0, 1, 3, 3, 3 for lengths 2, 1, 0, 3.

    What ``repeat_interleave`` gives for a range, in operations that every runtime has.

    Args:
        length: (G,) int64, G >= 1; 0 is allowed.
        total: Sum of the lengths.

    Returns:
        (total,) int64.
    """
    begin = length.cumsum(0)[:-1]  # of all but the first
    steps = length.new_zeros(total + 1).index_add(0, begin, torch.ones_like(begin))
    return steps.cumsum(0)[:-1]


def size_of(count: Tensor) -> int:
    """A count as a size for a new tensor.

    Args:
        count: () int64, not negative.

    Raises:
        RuntimeError: It is 2^40 or more, which no memory holds.
    """
    size: int = count.item()  # type: ignore[assignment]
    # A tracer knows nothing of the value and has to be told its bounds.
    torch._check(size >= 0)
    torch._check(size < _LARGEST_SIZE)
    return size


def in_graph() -> bool:
    """A graph is being exported, whose lists end with a filler."""
    return torch.compiler.is_exporting()


def keep_last(flags: Tensor) -> Tensor:
    """Flags (N,) bool, N >= 1; in a graph the last one is set, so that the filler is kept."""
    return torch.cat((flags[:-1], torch.ones_like(flags[-1:]))) if in_graph() else flags


def lengthen_last(length: Tensor) -> Tensor:
    """Lengths (G,) of segments, G >= 1; in a graph the last one is one longer, which makes room for the filler."""
    return torch.cat((length[:-1], length[-1:] + 1)) if in_graph() else length


def places_of(flags: Tensor) -> Tensor:
    """Places of the flags that are set, ascending.

    Args:
        flags: (N,) bool.

    Returns:
        (number of flags set,) int64.
    """
    return flags.nonzero().squeeze(1)


def sum_per_segment(segment: Tensor, values: Tensor, segments: int) -> Tensor:
    """Sum of the values of each segment.

    Args:
        segment: (N,) int64.
        values: (N,).
        segments: G.

    Returns:
        (G,) in the values' dtype.
    """
    return values.new_zeros(segments).index_add(0, segment, values)


def count_true(flags: Tensor, length: Tensor) -> Tensor:
    """How many flags are set in each segment, without a write per flag.

    Args:
        flags: (N,) bool, segment by segment.
        length: (G,) int64, sum N.

    Returns:
        (G,) int64.
    """
    running = torch.cat((length.new_zeros(1), flags.cumsum(0)))  # set before each place
    end = length.cumsum(0)
    return running.index_select(0, end) - running.index_select(0, end - length)
