"""Operations on lists of segments of different lengths, stored one after the other.

**In an exported graph no list is ever empty.** Runtimes crash on operators over empty lists, or give them a wrong shape
(ONNX Runtime's TopK before 1.31, ReduceSum before 1.32). So during export the last entry of every list is a dummy: an
entry of the empty slot that is appended to the ground truth, without any effect. :func:`keep_dummy` and
:func:`extend_for_dummy` put it there; outside export they do nothing.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from yolo_loss.execution.buffers import MIN_ARRAY, as_array, repeat

MAX_SIZE = 2**40
# Shortest chunk of a segment in the top-k.
MIN_CHUNK = 64
# Up to this k a chunk is so short that every segment may have one.
MAX_SMALL_K = MIN_CHUNK // 4


def segment_topk(values: Tensor, segment: Tensor, count: Tensor, k: int) -> Tensor:
    """Find the k largest values above 0 of each segment; among equal ones the earlier wins.

    Args:
        values: (P,) not negative, segment by segment.
        segment: (P,) int64, the segment of each value, ascending.
        count: (G,) int64, values of each segment.
        k: How many at most.

    Returns:
        (N,) int64 indices into ``values``, ascending; N <= G * k.
    """
    threshold = repeat(_segment_thresholds(values, segment, count, k), segment, count)
    reached = true_indices(keep_dummy((values >= threshold) & (values > 0)))
    # Values equal to the threshold are counted off in order: top-k routines disagree on which of them they return.
    group = segment.index_select(0, reached)
    above = values.index_select(0, reached) > threshold.index_select(0, reached)
    room = k - segment_sum(group, above.long(), count.shape[0])
    equal = (~above).long()
    before = equal.cumsum(0) - equal  # values on a threshold before this one, in all segments
    per_segment = segment_sum(group, equal, count.shape[0])
    rank = before - (per_segment.cumsum(0) - per_segment).index_select(0, group)
    kept = true_indices(above | (rank < room.index_select(0, group)))
    return reached.index_select(0, kept)


def _segment_thresholds(values: Tensor, segment: Tensor, count: Tensor, k: int) -> Tensor:
    """The k-th largest value of each segment (G,); 0 where it has fewer than k, or exactly k when k is large."""
    if k <= MAX_SMALL_K:
        return _kth_largest(values, segment, count, k)
    # A table of k values per segment may be far larger than the list: only segments with more than k values enter it.
    long = keep_dummy(count > k)
    chosen = true_indices(long)
    thresholds = values.new_zeros(count.shape[0])
    if not torch.compiler.is_exporting() and not chosen.shape[0]:
        return thresholds
    inside = true_indices(long.index_select(0, segment))
    number = (long.cumsum(0) - 1).index_select(0, segment.index_select(0, inside))
    kth = _kth_largest(values.index_select(0, inside), number, count.index_select(0, chosen), k)
    return thresholds.index_copy(0, chosen, kth)


def _kth_largest(values: Tensor, segment: Tensor, count: Tensor, k: int) -> Tensor:
    """The k-th largest value of each segment (G,); 0 where it has fewer than k.

    Each segment is split into chunks, and only the k largest values of each chunk are compared further.
    """
    chunk = max(MIN_CHUNK, 4 * k)
    chunks = (count + chunk - 1) // chunk  # (G,)
    first_chunk = chunks.cumsum(0) - chunks
    # Every segment starts at a chunk of its own.
    shift = first_chunk * chunk - (count.cumsum(0) - count)  # (G,)
    position = torch.arange(segment.shape[0], device=segment.device) + repeat(shift, segment, count)
    total = as_size(chunks.sum())
    padded = values.new_zeros(total * chunk).index_copy(0, position, values)
    best = padded.view(-1, chunk).topk(k, dim=1, sorted=False).values  # (chunks, k)
    widest = as_size(torch.cat((chunks, chunks.new_ones(1))).amax(dim=0))
    owner = segment_ids(chunks, total)
    rank = torch.arange(total, device=values.device) - first_chunk.index_select(0, owner)
    table = values.new_zeros((count.shape[0], widest, k)).index_put((owner, rank), best)
    return table.flatten(1).topk(k, dim=1, sorted=False).values.amin(dim=1)


def segment_ids(length: Tensor, total: int) -> Tensor:
    """The segment of each entry: 0, 0, 1, 3, 3, 3 for lengths 2, 1, 0, 3.

    Equals ``repeat_interleave`` of a range, in operations that every runtime has.

    Args:
        length: (G,) int64, G >= 1; 0 is allowed.
        total: Sum of the lengths.

    Returns:
        (total,) int64.
    """
    begin = length.cumsum(0)[:-1]  # of all but the first
    steps = length.new_zeros(total + 1).index_add(0, begin, torch.ones_like(begin))
    return steps.cumsum(0)[:-1]


def segment_sum(segment: Tensor, values: Tensor, segments: int) -> Tensor:
    """Sum the values of each segment.

    Args:
        segment: (N,) int64.
        values: (N,).
        segments: G.

    Returns:
        (G,) in the values' dtype.
    """
    return values.new_zeros(segments).index_add(0, segment, values)


def segment_count_true(flags: Tensor, length: Tensor) -> Tensor:
    """Count the true flags of each segment, without a write per flag.

    Args:
        flags: (N,) bool, segment by segment.
        length: (G,) int64, sum N.

    Returns:
        (G,) int64.
    """
    running = torch.cat((length.new_zeros(1), flags.cumsum(0)))  # true flags before each index
    end = length.cumsum(0)
    return running.index_select(0, end) - running.index_select(0, end - length)


def true_indices(flags: Tensor) -> Tensor:
    """Indices (N,) int64 of the true flags of a (K,) bool tensor, ascending."""
    array = as_array(flags, MIN_ARRAY)
    if array is None:
        return flags.nonzero().squeeze(1)
    return torch.from_numpy(numpy.flatnonzero(array))


def as_size(count: Tensor) -> int:
    """Read a count as a size for a new tensor.

    Args:
        count: () int64, not negative.

    Raises:
        RuntimeError: It is 2^40 or more, which no memory holds.
    """
    size: int = count.item()  # type: ignore[assignment]
    # During export the value is unknown, and its bounds must be stated.
    torch._check(size >= 0)
    torch._check(size < MAX_SIZE)
    return size


def keep_dummy(flags: Tensor) -> Tensor:
    """Set the last of the flags (N,) bool, N >= 1, during export, so that the dummy entry is kept."""
    return torch.cat((flags[:-1], torch.ones_like(flags[-1:]))) if torch.compiler.is_exporting() else flags


def extend_for_dummy(length: Tensor) -> Tensor:
    """Lengthen the last of the segments (G,), G >= 1, by one during export, to hold the dummy entry."""
    return torch.cat((length[:-1], length[-1:] + 1)) if torch.compiler.is_exporting() else length
