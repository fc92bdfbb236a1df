"""The kernels of the task-aligned assignment; ``yolo_loss.assignment.dense`` computes the same over all pairs.

Arguments of several, pointers unless said otherwise. G is a ground truth's index b * M + m.

* ``points`` (A, 2) with the steps of its axes ``point_steps``, and ``scales`` (A,) that they are multiplied with, or
  None: pixels.
* ``boxes`` (B, A, 4) predicted boxes, pixel xyxy, with ``box_steps``; ``scores``, ``steps`` and ``sizes``: class
  scores (B, C, A_i) of each level, the steps of their axes and A_i.
* ``truth`` (B, M, 4) pixel xyxy, ``labels`` and ``valid`` (B, M).
* ``level_numbers`` and ``level_positions``: what ``find_levels`` writes.
* ``claims`` (B, A) int64, from zeros: how often an anchor was chosen in the upper half, the sum of the slots that
  chose it in the lower. ``best`` (B, A) int64, from zeros: IoU bits of the candidate of largest IoU in the upper half,
  in the lower its slot counted down from ``LOW``, so that of equal IoUs the smallest slot is the maximum.
* ``owner`` (B, A) int32: slot, -1 on background; ``metric`` (B, A); ``max_metric`` and ``max_iou`` (B, M).
"""

from __future__ import annotations

import triton
import triton.language as tl

from yolo_loss.triton.functions import box_angle, distance_inside, iou_above_zero, point_at, power, score_at

# Rows of the table of levels.
MAX_LEVELS = tl.constexpr(16)
# How far, in steps, a point may lie from its position in an exactly regular level.
TOLERANCE = tl.constexpr(1e-3)
LOW = tl.constexpr(0xFFFFFFFF)
NO_KEY = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def prepare(
    points, point_steps, scales, level_numbers, level_positions, zeroed, length, anchors, block: tl.constexpr
):  # fmt: skip
    """Find the levels in the first program, and set ``zeroed`` (length,) int64 to 0 in the others."""
    program = tl.program_id(0)
    if program == 0:
        find_levels(points, point_steps, scales, level_numbers, level_positions, anchors, block)
    else:
        write_zeros(zeroed, length, program - 1, tl.num_programs(0) - 1, block)


@triton.jit
def write_zeros(pointer, length, share, shares, block: tl.constexpr):
    """Write one program's share of ``length`` zeros, int64."""
    for begin in range(share * block, length, shares * block):
        index = begin + tl.arange(0, block)
        tl.store(pointer + index, tl.zeros([block], tl.int64), index < length)


@triton.jit
def find_levels(points, point_steps, scales, level_numbers, level_positions, anchors, block: tl.constexpr):
    """Find the levels of a pyramid: rows of equal steps in x, and blocks of rows with equal steps in y.

    ``level_numbers`` int32 gets the number of levels at 0, then ``MAX_LEVELS`` starts, widths and heights;
    ``level_positions`` ``MAX_LEVELS`` first x, steps in x, first y, steps in y. Points in any other order make one
    level of step 0, of which every point is looked at.
    """
    entry = tl.arange(0, MAX_LEVELS)
    starts, count = level_starts(points, point_steps, scales, anchors, block)
    widths, heights = tl.zeros_like(starts), tl.zeros_like(starts)
    x0s, dxs = tl.zeros([MAX_LEVELS], tl.float32), tl.zeros([MAX_LEVELS], tl.float32)
    y0s, dys = tl.zeros([MAX_LEVELS], tl.float32), tl.zeros([MAX_LEVELS], tl.float32)
    wrong = 0
    for level in range(0, count):
        start = tl.sum(tl.where(entry == level, starts, 0), 0)
        end = tl.min(tl.where(starts > start, starts, anchors), 0)
        x0, y0 = point_at(points, point_steps, scales, start, start < anchors)
        x1, y1 = point_at(points, point_steps, scales, tl.minimum(start + 1, anchors - 1), start < anchors)
        last_x, last_y = point_at(points, point_steps, scales, end - 1, start < anchors)
        is_row = (start + 1 < end) & (y1 == y0) & (x1 > x0)
        dx = tl.where(is_row, x1 - x0, 1.0)
        columns = tl.floor((last_x - x0) / dx + 0.5) + 1.0
        width = tl.where(is_row & (columns > 1.0) & (columns <= end - start), columns, 1.0).to(tl.int32)
        height = (end - start) // width
        dy = tl.where(height > 1, (last_y - y0) / tl.maximum(height - 1, 1), 1.0)
        wrong += (width * height != end - start).to(tl.int32)
        for begin in range(start, end, block):
            a = begin + tl.arange(0, block)
            row = (a - start) // width
            x, y = point_at(points, point_steps, scales, a, a < end)
            fits = tl.abs(x - (x0 + (a - start - row * width) * dx)) <= TOLERANCE * dx
            fits = fits & (tl.abs(y - (y0 + row * dy)) <= TOLERANCE * dy)
            wrong += tl.max(tl.where(fits | (a >= end), 0, 1), 0)
        here = entry == level
        widths, heights = tl.where(here, width, widths), tl.where(here, height, heights)
        x0s, dxs = tl.where(here, x0, x0s), tl.where(here, dx, dxs)
        y0s, dys = tl.where(here, y0, y0s), tl.where(here, dy, dys)
    first = entry == tl.where(wrong > 0, 0, -1)
    tl.store(level_numbers, tl.where(wrong > 0, 1, count))
    tl.store(level_numbers + 1 + entry, tl.where(first, 0, starts))
    tl.store(level_numbers + 1 + MAX_LEVELS + entry, tl.where(first, anchors, widths))
    tl.store(level_numbers + 1 + 2 * MAX_LEVELS + entry, tl.where(first, 1, heights))
    tl.store(level_positions + entry, x0s)
    tl.store(level_positions + MAX_LEVELS + entry, tl.where(first, 0.0, dxs))
    tl.store(level_positions + 2 * MAX_LEVELS + entry, y0s)
    tl.store(level_positions + 3 * MAX_LEVELS + entry, tl.where(first, 0.0, dys))


@triton.jit
def level_starts(points, point_steps, scales, anchors, block: tl.constexpr):
    """First anchors of up to ``MAX_LEVELS`` levels, then A, and their number: where y, or x in a row, steps back."""
    entry = tl.arange(0, MAX_LEVELS)
    starts = tl.zeros([MAX_LEVELS], tl.int32) + anchors
    count = 0
    for begin in range(0, anchors, block):
        a = begin + tl.arange(0, block)
        x, y = point_at(points, point_steps, scales, a, a < anchors)
        last_x, last_y = point_at(points, point_steps, scales, tl.maximum(a - 1, 0), a < anchors)
        begins = (a == 0) | (y < last_y) | ((y == last_y) & (x <= last_x))
        start = tl.min(tl.where(begins & (a < anchors), a, anchors), 0)
        while (start < anchors) & (count < MAX_LEVELS):
            starts = tl.where(entry == count, start, starts)
            count += 1
            begins = begins & (a > start)
            start = tl.min(tl.where(begins & (a < anchors), a, anchors), 0)
    return starts, count


@triton.jit
def span(low, high, origin, step, count):
    """First and past-the-last of the members of a regular run that may lie between two bounds; all for step 0."""
    regular = step > 0.0
    step = tl.where(regular, step, 1.0)
    first = tl.floor((low - origin) / step - 0.01) + 1.0
    past = tl.ceil((high - origin) / step + 0.01)
    # Comparisons, so that NaN makes an empty range within the run.
    first = tl.where(regular & (first > 0.0), first, 0.0)
    first = tl.where(first < count, first, count + 0.0)
    past = tl.where(regular, past, count + 0.0)
    past = tl.where(past > first, past, first)
    past = tl.where(past < count, past, count + 0.0)
    return first.to(tl.int32), past.to(tl.int32)


@triton.jit
def cells_of(level_numbers, level_positions, level, x1, y1, x2, y2):
    """The cells of a level that a box may cover: the first one, the level's width, columns and number of cells."""
    start = tl.load(level_numbers + 1 + level)
    width = tl.load(level_numbers + 1 + MAX_LEVELS + level)
    height = tl.load(level_numbers + 1 + 2 * MAX_LEVELS + level)
    x0, dx = tl.load(level_positions + level), tl.load(level_positions + MAX_LEVELS + level)
    y0, dy = tl.load(level_positions + 2 * MAX_LEVELS + level), tl.load(level_positions + 3 * MAX_LEVELS + level)
    left, right = span(x1, x2, x0, dx, width)
    top, bottom = span(y1, y2, y0, dy, height)
    return start + top * width + left, width, right - left, (right - left) * (bottom - top)


@triton.jit
def enlarged(low, high, min_side):
    """The two ends of a side, ``min_side`` apart about their centre where they are nearer."""
    small = (high - low) < min_side
    centre = (low + high) * 0.5
    return tl.where(small, centre - min_side * 0.5, low), tl.where(small, centre + min_side * 0.5, high)


@triton.jit
def box_at(boxes, box_steps, b, a, mask):
    """The four sides of predicted boxes."""
    here = boxes + b.to(tl.int64) * box_steps[0] + a * box_steps[1]
    x1, y1 = tl.load(here, mask, 0.0), tl.load(here + box_steps[2], mask, 0.0)
    return x1, y1, tl.load(here + 2 * box_steps[2], mask, 0.0), tl.load(here + 3 * box_steps[2], mask, 0.0)


@triton.jit
def metric_of(score, iou, mask, alpha: tl.constexpr, beta: tl.constexpr, logits: tl.constexpr):
    """Metric s^alpha * u^beta; 0 outside the mask and where it is not above 0."""
    if logits:
        score = tl.div_rn(1.0, 1.0 + tl.exp(-score))
    product = power(score, alpha) * power(iou, beta)
    return tl.where(mask & (product > 0.0), product, 0.0)


@triton.jit
def key_of(value, index):
    """Orders by a value that is not negative, then by the smaller index."""
    return (value.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (LOW - index.to(tl.int64))


@triton.jit
def keep_largest(table, keys):
    """Replace the smallest entries of a table by larger keys; keys of 0 are none, and all others differ."""
    largest, smallest = tl.max(keys, 0), tl.min(table, 0)
    while largest > tl.maximum(smallest, 0):
        table = tl.where(table == smallest, largest, table)
        keys = tl.where(keys == largest, 0, keys)
        largest, smallest = tl.max(keys, 0), tl.min(table, 0)
    return table


@triton.jit
def empty_table(k: tl.constexpr, size: tl.constexpr):
    """A table for the k largest keys. Entries differ, so that one at a time is replaced; those from k on never are."""
    entry = tl.arange(0, size).to(tl.int64)
    return tl.where(entry < k, -1 - entry, NO_KEY)


@triton.jit
def select_topk(
    points, point_steps, scales, boxes, box_steps, scores, steps, sizes, truth, labels, valid,
    level_numbers, level_positions, claims, best, slots, anchors, classes, eps, min_side,
    k: tl.constexpr, table_size: tl.constexpr, alpha: tl.constexpr, beta: tl.constexpr, logits: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """Choose a ground truth's k anchors of largest metric above 0; among equal ones the smaller index.

    Looks at the rows and columns of each level that the box covers. Writes ``best`` of every candidate, and into
    ``claims`` what is chosen. One program per ground truth; ``table_size`` is k rounded up to a power of two.
    """
    g = tl.program_id(0)
    b = g // slots
    m = g - b * slots
    if tl.load(valid + g) != 0:
        gx1, gy1 = tl.load(truth + 4 * g), tl.load(truth + 4 * g + 1)
        gx2, gy2 = tl.load(truth + 4 * g + 2), tl.load(truth + 4 * g + 3)
        angle = box_angle(gx1, gy1, gx2, gy2)
        x1, x2 = enlarged(gx1, gx2, min_side)
        y1, y2 = enlarged(gy1, gy2, min_side)
        label = tl.minimum(tl.maximum(tl.load(labels + g), 0), classes - 1)
        table = empty_table(k, table_size)
        for level in range(0, tl.load(level_numbers)):
            first, width, columns, cells = cells_of(level_numbers, level_positions, level, x1, y1, x2, y2)
            for begin in range(0, cells, block):
                cell = begin + tl.arange(0, block)
                row = cell // columns
                a = first + row * width + (cell - row * columns)
                x, y = point_at(points, point_steps, scales, a, cell < cells)
                inside = (cell < cells) & (distance_inside(x, y, x1, y1, x2, y2) > eps)
                px1, py1, px2, py2 = box_at(boxes, box_steps, b, a, inside)
                iou = iou_above_zero(gx1, gy1, gx2, gy2, angle, px1, py1, px2, py2)
                score = score_at(scores, steps, sizes, b, label, a, inside)
                metric = metric_of(score, iou, inside, alpha, beta, logits)
                # What loses to a value that is there already need not be compared by an atomic operation. With a
                # beta above 0 nothing of IoU 0 is ever chosen.
                here = best + b.to(tl.int64) * anchors + a
                iou_key = key_of(iou, m)
                counts = inside & (iou > 0.0) if beta > 0 else inside
                tl.atomic_max(here, iou_key, counts & (iou_key > tl.load(here, counts, 0)), sem="relaxed")
                table = keep_largest(table, tl.where(metric > 0.0, key_of(metric, a), 0))
        chosen = (table > 0) & (table != NO_KEY)
        here = claims + b.to(tl.int64) * anchors + tl.where(chosen, LOW - (table & LOW), 0)
        tl.atomic_add(here, tl.zeros_like(table) + ((1 << 32) + m.to(tl.int64)), chosen, sem="relaxed")


@triton.jit
def resolve_conflicts(
    boxes, box_steps, scores, steps, sizes, truth, labels, claims, best, owner, metric, max_metric, max_iou,
    slots, anchors, classes,
    alpha: tl.constexpr, beta: tl.constexpr, logits: tl.constexpr, with_maxima: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Assign an anchor chosen by several to the largest IoU among all whose candidate it is; ties: smallest slot.

    Writes ``owner`` and ``metric``, and the largest metric and IoU of each ground truth's anchors. One program per
    image and block of anchors.
    """
    b = tl.program_id(1)
    a = tl.program_id(0) * block + tl.arange(0, block)
    here = b.to(tl.int64) * anchors + a
    claim = tl.load(claims + here, a < anchors, 0)
    count = claim >> 32
    foreground = count > 0
    winner = LOW - (tl.load(best + here, count > 1, 0) & LOW)
    slot = tl.where(count == 1, claim & LOW, winner)
    slot = tl.where(foreground, slot, 0).to(tl.int32)
    g = b * slots + slot
    gx1, gy1 = tl.load(truth + 4 * g, foreground, 0.0), tl.load(truth + 4 * g + 1, foreground, 0.0)
    gx2, gy2 = tl.load(truth + 4 * g + 2, foreground, 0.0), tl.load(truth + 4 * g + 3, foreground, 0.0)
    px1, py1, px2, py2 = box_at(boxes, box_steps, b, a, foreground)
    iou = iou_above_zero(gx1, gy1, gx2, gy2, box_angle(gx1, gy1, gx2, gy2), px1, py1, px2, py2)
    label = tl.minimum(tl.maximum(tl.load(labels + g, foreground, 0), 0), classes - 1)
    score = score_at(scores, steps, sizes, b, label, a, foreground)
    own_metric = metric_of(score, iou, foreground, alpha, beta, logits)
    tl.store(owner + here, tl.where(foreground, slot, -1), a < anchors)
    tl.store(metric + here, own_metric, a < anchors)
    if with_maxima:
        tl.atomic_max(max_metric + g, own_metric, foreground, sem="relaxed")
        tl.atomic_max(max_iou + g, iou, foreground, sem="relaxed")


@triton.jit
def keep_topk2(
    boxes, box_steps, truth, valid, level_numbers, level_positions, owner, metric, max_metric, max_iou,
    slots, anchors, min_side, k: tl.constexpr, table_size: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Leave each ground truth its k best anchors of those it owns, and write the largest metric and IoU of these."""
    g = tl.program_id(0)
    b = g // slots
    m = g - b * slots
    if tl.load(valid + g) != 0:
        gx1, gy1 = tl.load(truth + 4 * g), tl.load(truth + 4 * g + 1)
        gx2, gy2 = tl.load(truth + 4 * g + 2), tl.load(truth + 4 * g + 3)
        angle = box_angle(gx1, gy1, gx2, gy2)
        x1, x2 = enlarged(gx1, gx2, min_side)
        y1, y2 = enlarged(gy1, gy2, min_side)
        table = empty_table(k, table_size)
        levels = tl.load(level_numbers)
        image = b.to(tl.int64) * anchors
        for level in range(0, levels):
            first, width, columns, cells = cells_of(level_numbers, level_positions, level, x1, y1, x2, y2)
            for begin in range(0, cells, block):
                cell = begin + tl.arange(0, block)
                row = cell // columns
                a = first + row * width + (cell - row * columns)
                own = (cell < cells) & (tl.load(owner + image + a, cell < cells, -1) == m)
                value = tl.load(metric + image + a, own, 0.0)
                table = keep_largest(table, tl.where(value > 0.0, key_of(value, a), 0))
        smallest = tl.maximum(tl.min(table, 0), LOW + 1)  # no key of a metric of 0
        largest_iou = tl.zeros([block], tl.float32)
        for level in range(0, levels):
            first, width, columns, cells = cells_of(level_numbers, level_positions, level, x1, y1, x2, y2)
            for begin in range(0, cells, block):
                cell = begin + tl.arange(0, block)
                row = cell // columns
                a = first + row * width + (cell - row * columns)
                own = (cell < cells) & (tl.load(owner + image + a, cell < cells, -1) == m)
                kept = own & (key_of(tl.load(metric + image + a, own, 0.0), a) >= smallest)
                tl.store(owner + image + a, tl.zeros_like(a) - 1, own & (kept == 0))
                px1, py1, px2, py2 = box_at(boxes, box_steps, b, a, kept)
                iou = iou_above_zero(gx1, gy1, gx2, gy2, angle, px1, py1, px2, py2)
                largest_iou = tl.maximum(largest_iou, tl.where(kept, iou, 0.0))
        key = tl.max(tl.where((table > 0) & (table != NO_KEY), table, 0), 0)
        tl.store(max_metric + g, (key >> 32).to(tl.int32).to(tl.float32, bitcast=True))
        tl.store(max_iou + g, tl.max(largest_iou, 0))


@triton.jit
def weigh(
    owner, metric, max_metric, max_iou, truth, labels, foreground, gt_idx, weights, weight_sums,
    target_labels, target_boxes, target_scores, slots, anchors, classes, eps,
    with_targets: tl.constexpr, channels: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write the assignment (B, A), and the sum of the weights of each block of anchors (B, blocks).

    Weights are metric * max_iou / (max_metric + eps), multiplied first. With ``with_targets`` also labels, boxes and
    rows of scores. One program per image and block.
    """
    b = tl.program_id(1)
    a = tl.program_id(0) * block + tl.arange(0, block)
    here = b.to(tl.int64) * anchors + a
    slot = tl.load(owner + here, a < anchors, -1)
    own = slot >= 0
    slot = tl.maximum(slot, 0)
    g = b * slots + slot
    product = tl.load(metric + here, own, 0.0) * tl.load(max_iou + g, own, 0.0)
    weight = tl.where(own, tl.div_rn(product, tl.load(max_metric + g, own, 1.0) + eps), 0.0)
    tl.store(foreground + here, own.to(tl.uint8), a < anchors)
    tl.store(gt_idx + here, slot.to(tl.int64), a < anchors)
    tl.store(weights + here, weight, a < anchors)
    tl.store(weight_sums + b * tl.num_programs(0) + tl.program_id(0), tl.sum(weight, 0))
    if with_targets:
        label = tl.maximum(tl.load(labels + g, a < anchors, 0), 0)
        tl.store(target_labels + here, label, a < anchors)
        side = tl.arange(0, 4)[None, :]
        sides = tl.load(truth + 4 * g[:, None] + side, (a < anchors)[:, None], 0.0)
        tl.store(target_boxes + 4 * here[:, None] + side, sides, (a < anchors)[:, None])
        for begin in range(0, classes, channels):
            c = begin + tl.arange(0, channels)[None, :]
            row = tl.where(label[:, None] == c, weight[:, None], 0.0)
            tl.store(target_scores + here[:, None] * classes + c, row, (a < anchors)[:, None] & (c < classes))
