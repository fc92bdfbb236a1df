"""Lists of segments of different lengths, one behind the other.

**In a graph no list is ever empty.** Runtimes crash on operators over empty lists, or give them a wrong shape (ONNX
Runtime's TopK before 1.31, ReduceSum before 1.32). So while a graph is exported, the last entry of every list is a
filler: an entry of the empty slot that is appended to the ground truth, without any effect. The functions
:func:`keep_dummy` and :func:`extend_for_dummy` put it there; elsewhere they do nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST_SIZE = 2**40


def segment_ids(length: Tensor, total: int) -> Tensor:
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


def as_size(count: Tensor) -> int:
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


def is_exporting() -> bool:
    """A graph is being exported, whose lists end with a filler."""
    return torch.compiler.is_exporting()


def keep_dummy(flags: Tensor) -> Tensor:
    """Flags (N,) bool, N >= 1; in a graph the last one is set, so that the filler is kept."""
    return torch.cat((flags[:-1], torch.ones_like(flags[-1:]))) if is_exporting() else flags


def extend_for_dummy(length: Tensor) -> Tensor:
    """Lengths (G,) of segments, G >= 1; in a graph the last one is one longer, which makes room for the filler."""
    return torch.cat((length[:-1], length[-1:] + 1)) if is_exporting() else length


def true_indices(flags: Tensor) -> Tensor:
    """Places of the flags that are set, ascending.

    Args:
        flags: (N,) bool.

    Returns:
        (number of flags set,) int64.
    """
    return flags.nonzero().squeeze(1)


def segment_sum(segment: Tensor, values: Tensor, segments: int) -> Tensor:
    """Sum of the values of each segment.

    Args:
        segment: (N,) int64.
        values: (N,).
        segments: G.

    Returns:
        (G,) in the values' dtype.
    """
    return values.new_zeros(segments).index_add(0, segment, values)


def segment_count_true(flags: Tensor, length: Tensor) -> Tensor:
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


MIN_CHUNK = 64
# Up to this k a chunk is so short that every segment may have one.
MAX_SMALL_K = MIN_CHUNK // 4


def select_topk(values: Tensor, segment: Tensor, count: Tensor, k: int) -> Tensor:
    """Places of each segment's k largest values above 0; among equal ones the earlier wins.

    Args:
        values: (P,) not negative, segment by segment.
        segment: (P,) int64, the segment of each value, ascending.
        count: (G,) int64, values of each segment.
        k: How many at most.

    Returns:
        (N,) int64 places in ``values``, ascending; N <= G * k.
    """
    own = segment_kth_largest(values, segment, count, k).index_select(0, segment)
    reached = true_indices(keep_dummy((values >= own) & (values > 0)))
    # What lies on the threshold is counted off in order: top-k routines do not agree on which of several they give.
    group = segment.index_select(0, reached)
    above = values.index_select(0, reached) > own.index_select(0, reached)
    room = k - segment_sum(group, above.long(), count.shape[0])
    level = (~above).long()
    before = level.cumsum(0) - level  # values on a threshold before this one, in all segments
    earlier = segment_sum(group, level, count.shape[0])
    rank = before - (earlier.cumsum(0) - earlier).index_select(0, group)
    kept = true_indices(above | (rank < room.index_select(0, group)))
    return reached.index_select(0, kept)


def segment_kth_largest(values: Tensor, segment: Tensor, count: Tensor, k: int) -> Tensor:
    """The k-th largest value of each segment, 0 where it has fewer than k, or k when k is large.

    Returns:
        (G,) in the values' dtype.
    """
    if k <= MAX_SMALL_K:
        return _kth_largest(values, segment, count, k)
    # Room for k values in each segment may be far more than there are values: only segments that have more get it.
    long = keep_dummy(count > k)
    chosen = true_indices(long)
    thresholds = values.new_zeros(count.shape[0])
    if not is_exporting() and not chosen.shape[0]:
        return thresholds
    inside = true_indices(long.index_select(0, segment))
    number = (long.cumsum(0) - 1).index_select(0, segment.index_select(0, inside))
    kth = _kth_largest(values.index_select(0, inside), number, count.index_select(0, chosen), k)
    return thresholds.index_copy(0, chosen, kth)


def _kth_largest(values: Tensor, segment: Tensor, count: Tensor, k: int) -> Tensor:
    """The k-th largest value of each segment, 0 where it has fewer than k.

    Segments are cut into chunks. Of each chunk only the k largest go on; among these is a segment's k-th largest.
    """
    chunk = max(MIN_CHUNK, 4 * k)
    chunks = (count + chunk - 1) // chunk  # (G,)
    place, total = _places(segment, count, chunks, chunk)
    padded = values.new_zeros(total * chunk).index_copy(0, place, values)
    best = padded.view(-1, chunk).topk(k, dim=1, sorted=False).values  # (chunks, k)
    widest = as_size(torch.cat((chunks, chunks.new_ones(1))).amax(dim=0))
    owner = segment_ids(chunks, total)
    rank = torch.arange(total, device=values.device) - (chunks.cumsum(0) - chunks).index_select(0, owner)
    table = values.new_zeros((count.shape[0], widest, k)).index_put((owner, rank), best)
    return table.flatten(1).topk(k, dim=1, sorted=False).values.amin(dim=1)


def _places(segment: Tensor, count: Tensor, chunks: Tensor, chunk: int) -> tuple[Tensor, int]:
    """Where each value goes when every segment starts on a chunk of its own, and how many chunks there are."""
    end = chunks.cumsum(0)
    shift = (end - chunks) * chunk - (count.cumsum(0) - count)  # (G,)
    place = torch.arange(segment.shape[0], device=segment.device) + shift.index_select(0, segment)
    return place, as_size(chunks.sum())
