"""The k largest of each segment of a list, without padding every segment to the longest."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_loss.segments import in_graph, keep_last, places_of, segment_of, size_of, sum_per_segment

LEAST_CHUNK = 64
# Up to this k a chunk is so short that every segment may have one.
SMALL_K = LEAST_CHUNK // 4


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
    own = kth_largest(values, segment, count, k).index_select(0, segment)
    reached = places_of(keep_last((values >= own) & (values > 0)))
    # What lies on the threshold is counted off in order: top-k routines do not agree on which of several they give.
    group = segment.index_select(0, reached)
    above = values.index_select(0, reached) > own.index_select(0, reached)
    room = k - sum_per_segment(group, above.long(), count.shape[0])
    level = (~above).long()
    before = level.cumsum(0) - level  # values on a threshold before this one, in all segments
    earlier = sum_per_segment(group, level, count.shape[0])
    rank = before - (earlier.cumsum(0) - earlier).index_select(0, group)
    kept = places_of(above | (rank < room.index_select(0, group)))
    return reached.index_select(0, kept)


def kth_largest(values: Tensor, segment: Tensor, count: Tensor, k: int) -> Tensor:
    """The k-th largest value of each segment, 0 where it has fewer than k, or k when k is large.

    Returns:
        (G,) in the values' dtype.
    """
    if k <= SMALL_K:
        return _kth_largest(values, segment, count, k)
    # Room for k values in each segment may be far more than there are values: only segments that have more get it.
    long = keep_last(count > k)
    chosen = places_of(long)
    thresholds = values.new_zeros(count.shape[0])
    if not in_graph() and not chosen.shape[0]:
        return thresholds
    inside = places_of(long.index_select(0, segment))
    number = (long.cumsum(0) - 1).index_select(0, segment.index_select(0, inside))
    kth = _kth_largest(values.index_select(0, inside), number, count.index_select(0, chosen), k)
    return thresholds.index_copy(0, chosen, kth)


def _kth_largest(values: Tensor, segment: Tensor, count: Tensor, k: int) -> Tensor:
    """The k-th largest value of each segment, 0 where it has fewer than k.

    Segments are cut into chunks. Of each chunk only the k largest go on; among these is a segment's k-th largest.
    """
    chunk = max(LEAST_CHUNK, 4 * k)
    chunks = (count + chunk - 1) // chunk  # (G,)
    place, total = _places(segment, count, chunks, chunk)
    padded = values.new_zeros(total * chunk).index_copy(0, place, values)
    best = padded.view(-1, chunk).topk(k, dim=1, sorted=False).values  # (chunks, k)
    widest = size_of(torch.cat((chunks, chunks.new_ones(1))).amax(dim=0))
    owner = segment_of(chunks, total)
    rank = torch.arange(total, device=values.device) - (chunks.cumsum(0) - chunks).index_select(0, owner)
    table = values.new_zeros((count.shape[0], widest, k)).index_put((owner, rank), best)
    return table.flatten(1).topk(k, dim=1, sorted=False).values.amin(dim=1)


def _places(segment: Tensor, count: Tensor, chunks: Tensor, chunk: int) -> tuple[Tensor, int]:
    """Where each value goes when every segment starts on a chunk of its own, and how many chunks there are."""
    end = chunks.cumsum(0)
    shift = (end - chunks) * chunk - (count.cumsum(0) - count)  # (G,)
    place = torch.arange(segment.shape[0], device=segment.device) + shift.index_select(0, segment)
    return place, size_of(chunks.sum())
