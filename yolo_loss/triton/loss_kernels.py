"""The kernels of the loss: anchor points, decoding, the class pass, the box pass, and the sums.

Arguments of several, pointers unless said otherwise. Tuples have one entry for each level.

* ``distri`` and ``logits``: levels (B, 4R, A_i) and (B, C, A_i) of any floating type, with the steps of their axes,
  and ``sizes`` A_i; ``distri_grads`` and ``logit_grads`` with their steps alike, for the gradients.
* ``points`` (A, 2) in grid units, ``scales`` (A,) pixels per grid unit.
* ``truth`` (B, M, 4) pixel xyxy, ``labels`` (B, M); ``owner`` (B, A) int32: slot, -1 on background; ``weights`` (B, A).
* ``weight_sums``: ``weight_parts`` sums of weights of all images together.
* ``grad_loss`` () and ``grad_sums`` (B, 4): derivatives by the loss and by the sums per image, or None for 1 and 0.

A pass gives sums per image and block (B, blocks) with ``with_sums``, and gradients with ``with_grads``. Each gradient
is multiplied with the derivative of the loss by its sum, gain * B / max(S, 1), where S is the sum of all weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from yolo_loss.triton.assignment_kernels import find_levels, write_zeros
from yolo_loss.triton.functions import EPS, arctangent, distance_inside, log1p_of_fraction, point_at

ASPECT = tl.constexpr(0.40528473456935116)  # 4 / pi^2


@triton.jit
def block_of(maps, steps, sizes, b, place, block: tl.constexpr):
    """The ``place``-th block of an image's anchors, none of which reaches into the next level.

    Selected, not computed for each level in turn: that would compile what follows once for each level.

    Args:
        maps: Levels of one type.
        steps: Of their axes.
        sizes: A_i.
        b: The image.
        place: Counts blocks.
        block: Anchors in a block.

    Returns:
        Pointers to the anchors' first channel, the step between channels, the anchors counted from the level's first,
        A_i, and the level's first anchor.
    """
    size, begin, step = place * 0 + sizes[0], place * 0, place * 0 + steps[0][1]
    own = place * block + tl.arange(0, block)
    source = maps[0] + b.to(tl.int64) * steps[0][0] + own * steps[0][2]
    first, before = tl.cdiv(sizes[0], block), sizes[0]
    for level in tl.static_range(1, len(maps)):
        if place >= first:
            size, begin, step = place * 0 + sizes[level], place * 0 + before, place * 0 + steps[level][1]
            own = (place - first) * block + tl.arange(0, block)
            source = maps[level] + b.to(tl.int64) * steps[level][0] + own * steps[level][2]
        first += tl.cdiv(sizes[level], block)
        before += sizes[level]
    return source, step, own, size, begin


@triton.jit
def write_anchors(points, scales, widths, sizes, strides, anchors, block: tl.constexpr):
    """Write the centres of all cells (A, 2) in grid units and their strides (A,)."""
    a = tl.program_id(0) * block + tl.arange(0, block)
    x, y, scale = a.to(tl.float32), a.to(tl.float32), a.to(tl.float32)
    begin = 0
    for level in tl.static_range(len(widths)):
        here = (a >= begin) & (a < begin + sizes[level])
        row = (a - begin) // widths[level]
        x = tl.where(here, (a - begin - row * widths[level]) + 0.5, x)
        y = tl.where(here, row + 0.5, y)
        scale = tl.where(here, strides[level], scale)
        begin += sizes[level]
    tl.store(points + 2 * a, x, a < anchors)
    tl.store(points + 2 * a + 1, y, a < anchors)
    tl.store(scales + a, scale, a < anchors)


@triton.jit
def decode(
    distri, steps, sizes, points, scales, boxes, level_numbers, level_positions, zeroed, length, anchors,
    reg_max: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Decode all boxes (B, 4, A), pixel xyxy; find the levels, and set ``zeroed`` (length,) int64 to 0.

    One program per image and block of a level's anchors, and one image of blocks more, of which the first finds the
    levels; ``rows`` is R rounded up to a power of two.
    """
    b = tl.program_id(1)
    place = tl.program_id(0)
    if b == tl.num_programs(1) - 1:
        if place == 0:
            find_levels(points, (2, 1), scales, level_numbers, level_positions, anchors, 8 * block)
    else:
        share = b * tl.num_programs(0) + place
        write_zeros(zeroed, length, share, tl.num_programs(0) * (tl.num_programs(1) - 1), block)
        source, step, own, size, begin = block_of(distri, steps, sizes, b, place, block)
        mask = own < size
        a = begin + own
        left, top, right, bottom = distances_of(source, step, mask, reg_max, rows)
        x = tl.load(points + 2 * a, mask, 0.0)
        y = tl.load(points + 2 * a + 1, mask, 0.0)
        scale = tl.load(scales + a, mask, 0.0)
        here = boxes + b.to(tl.int64) * 4 * anchors + a
        tl.store(here, (x - left) * scale, mask)
        tl.store(here + anchors, (y - top) * scale, mask)
        tl.store(here + 2 * anchors, (x + right) * scale, mask)
        tl.store(here + 3 * anchors, (y + bottom) * scale, mask)


@triton.jit
def distances_of(source, step, mask, reg_max: tl.constexpr, rows: tl.constexpr):
    """Distances of the four sides, grid units."""
    if reg_max == 1:
        left, top = tl.load(source, mask, 0.0).to(tl.float32), tl.load(source + step, mask, 0.0).to(tl.float32)
        right = tl.load(source + 2 * step, mask, 0.0).to(tl.float32)
        bottom = tl.load(source + 3 * step, mask, 0.0).to(tl.float32)
    else:
        left = expectation(softmax_of(source, step, mask, 0, reg_max, rows), rows)
        top = expectation(softmax_of(source, step, mask, 1, reg_max, rows), rows)
        right = expectation(softmax_of(source, step, mask, 2, reg_max, rows), rows)
        bottom = expectation(softmax_of(source, step, mask, 3, reg_max, rows), rows)
    return left, top, right, bottom


@triton.jit
def logits_below_largest(source, step, mask, side: tl.constexpr, reg_max: tl.constexpr, rows: tl.constexpr):
    """A side's logits (R, anchors) minus the largest of each anchor, -inf in rows from R on."""
    r = tl.arange(0, rows)[:, None]
    x = tl.load(source[None, :] + (side * reg_max + r) * step, (r < reg_max) & mask[None, :], 0.0).to(tl.float32)
    x = tl.where(r < reg_max, x, float("-inf"))
    return x - tl.max(x, 0)[None, :]


@triton.jit
def softmax_of(source, step, mask, side: tl.constexpr, reg_max: tl.constexpr, rows: tl.constexpr):
    """A side's distribution (R, anchors)."""
    e = tl.exp(logits_below_largest(source, step, mask, side, reg_max, rows))
    return e / tl.sum(e, 0)[None, :]


@triton.jit
def expectation(probabilities, rows: tl.constexpr):
    """Expected bin of each anchor."""
    return tl.sum(probabilities * tl.arange(0, rows)[:, None].to(tl.float32), 0)


@triton.jit
def total_of(values, parts):
    """Sum of a list, always in the same order."""
    total = tl.zeros([256], tl.float32)
    for begin in range(0, parts, 256):
        index = begin + tl.arange(0, 256)
        total += tl.load(values + index, index < parts, 0.0)
    return tl.sum(total, 0)


@triton.jit
def derivative(gain, images, weight_sums, weight_parts, grad_loss, grad_sums, b, column: tl.constexpr):
    """Derivative by one of the three sums of an image: of the loss, and of what else was made of the sums."""
    result = 0.0
    if grad_loss is not None:
        result = tl.load(grad_loss) * (gain * images / tl.maximum(total_of(weight_sums, weight_parts), 1.0))
    elif grad_sums is None:
        result = gain * images / tl.maximum(total_of(weight_sums, weight_parts), 1.0)
    if grad_sums is not None:
        result += tl.load(grad_sums + 4 * b + column)
    return result


@triton.jit
def class_pass(
    logits, steps, logit_grads, grad_steps, sizes, points, scales, labels, owner, weights,
    constant_weights, image_weights, regions, region_valid, class_sums,
    gain, weight_sums, weight_parts, grad_loss, grad_sums, slots, anchors, classes, region_slots, eps,
    varifocal: tl.constexpr, with_sums: tl.constexpr, with_grads: tl.constexpr,
    channels: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The class loss of all anchors and classes.

    ``constant_weights`` (C,) and ``image_weights`` (B, C) are factors of the classes, ``regions`` (B, I, 4) with
    ``region_valid`` (B, I) boxes in which background has no class loss, or None. One program per image and block of a
    level's anchors, which reads ``channels`` classes at a time.
    """
    b = tl.program_id(1)
    place = tl.program_id(0)
    scale = 0.0
    if with_grads:
        scale = derivative(gain, tl.num_programs(1), weight_sums, weight_parts, grad_loss, grad_sums, b, 1)
    source, step, own, size, begin = block_of(logits, steps, sizes, b, place, block)
    mask = own < size
    a = begin + own
    slot = tl.load(owner + b.to(tl.int64) * anchors + a, mask, -1)
    weight = tl.load(weights + b.to(tl.int64) * anchors + a, mask, 0.0)
    label = tl.load(labels + b * slots + slot, slot >= 0, -1)
    label = tl.where(slot >= 0, tl.maximum(label, 0), -1).to(tl.int32)
    counts = mask
    if regions is not None:
        px, py = point_at(points, (2, 1), scales, a, mask)
        counts = mask & ((slot >= 0) | (lies_in_region(px, py, regions, region_valid, b, region_slots, eps) == 0))
    total = tl.zeros([channels, block], tl.float32)
    if with_grads:
        target, grad_step, _, _, _ = block_of(logit_grads, grad_steps, sizes, b, place, block)
    for first in range(0, classes, channels):
        c = first + tl.arange(0, channels)
        factor = class_factor(constant_weights, image_weights, b, c, classes)[:, None]
        every = (c < classes)[:, None] & mask[None, :]
        counted = every & counts[None, :] & (factor > 0.0)
        x = tl.load(source[None, :] + c[:, None] * step, counted, 0.0).to(tl.float32)
        loss, slope = class_element(x, weight[None, :], label[None, :] == c[:, None], varifocal)
        if with_sums:
            total += tl.where(counted, loss * factor, 0.0)
        if with_grads:
            slope = tl.where(counted, slope * (factor * scale), 0.0)
            tl.store(target[None, :] + c[:, None] * grad_step, slope, every)
    if with_sums:
        tl.store(class_sums + b * tl.num_programs(0) + place, tl.sum(tl.sum(total, 0), 0))


@triton.jit
def class_factor(constant_weights, image_weights, b, c, classes):
    """Factors of classes, 0 beyond the last class."""
    factor = tl.where(c < classes, 1.0, 0.0)
    if constant_weights is not None:
        factor = factor * tl.load(constant_weights + c, c < classes, 0.0)
    if image_weights is not None:
        factor = factor * tl.load(image_weights + b * classes + c, c < classes, 0.0)
    return factor


@triton.jit
def lies_in_region(x, y, regions, region_valid, b, region_slots, eps):
    """1 for points that lie in one of the image's regions, else 0."""
    found = tl.zeros_like(x).to(tl.int32)
    for region in range(0, region_slots):
        i = b * region_slots + region
        if tl.load(region_valid + i) != 0:
            x1, y1 = tl.load(regions + 4 * i), tl.load(regions + 4 * i + 1)
            x2, y2 = tl.load(regions + 4 * i + 2), tl.load(regions + 4 * i + 3)
            found = found | (distance_inside(x, y, x1, y1, x2, y2) > eps).to(tl.int32)
    return found


@triton.jit
def class_element(x, weight, assigned, varifocal: tl.constexpr):
    """Loss of logits and its derivative: of background, and with the target ``weight`` where ``assigned``."""
    y = tl.exp(-tl.abs(x))
    tail = log1p_of_fraction(y)
    plus, minus = tl.maximum(x, 0.0) + tail, tl.maximum(-x, 0.0) + tail  # softplus of x and of -x
    p = tl.where(x >= 0.0, 1.0, y) / (1.0 + y)
    # Not softplus(x) - w x, which is inf - inf for an infinite logit.
    entropy = (1.0 - weight) * plus + weight * minus
    entropy = tl.where((x == float("inf")) & (weight >= 1.0), float("inf"), entropy)
    residual = p - weight
    if varifocal:
        loss = tl.where(assigned, weight * entropy, 0.75 * p * p * plus)
        slope = tl.where(assigned, weight * residual, 0.75 * p * p * (2.0 * (1.0 - p) * plus + p))
    else:
        loss, slope = tl.where(assigned, entropy, plus), tl.where(assigned, residual, p)
    return loss, slope


@triton.jit
def box_pass(
    distri, steps, distri_grads, grad_steps, sizes, points, scales, truth, owner, weights,
    box_sums, dfl_sums, clipped_counts, clipped_lengths,
    box_gain, dfl_gain, weight_sums, weight_parts, grad_loss, grad_sums, slots, anchors, width, height,
    with_sums: tl.constexpr, with_grads: tl.constexpr, reg_max: tl.constexpr, rows: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """The box loss and the distribution loss, or l1 with R = 1, of the foreground; gradients are 0 elsewhere.

    Counts sides that R bins do not express, ``clipped_counts`` (B, blocks) int32, and their largest length in pixels
    ``clipped_lengths``. ``width`` and ``height`` are the cells of the first level. One program per image and block of
    a level's anchors; ``rows`` is R rounded up to a power of two.
    """
    b = tl.program_id(1)
    place = tl.program_id(0)
    part = b * tl.num_programs(0) + place
    source, step, own, size, begin = block_of(distri, steps, sizes, b, place, block)
    mask = own < size
    a = begin + own
    target = None
    grad_step = 0
    if with_grads:
        target, grad_step, _, _, _ = block_of(distri_grads, grad_steps, sizes, b, place, block)
    slot = tl.load(owner + b.to(tl.int64) * anchors + a, mask, -1)
    box, dfl, count, length = 0.0, 0.0, 0, 0.0
    if tl.max(slot, 0) >= 0:
        box_scale, dfl_scale = 0.0, 0.0
        if with_grads:
            images = tl.num_programs(1)
            box_scale = derivative(box_gain, images, weight_sums, weight_parts, grad_loss, grad_sums, b, 0)
            dfl_scale = derivative(dfl_gain, images, weight_sums, weight_parts, grad_loss, grad_sums, b, 2)
        weight = tl.load(weights + b.to(tl.int64) * anchors + a, slot >= 0, 0.0)
        box, dfl, count, length = box_block(
            source, step, target, grad_step, points, scales, truth, b * slots, slot, a, mask,
            weight, box_scale, dfl_scale, width, height, reg_max, rows,
        )  # fmt: skip
    elif with_grads:
        channel = tl.arange(0, 4 * rows)[:, None]
        every = (channel < 4 * reg_max) & mask[None, :]
        tl.store(target[None, :] + channel * grad_step, tl.zeros([4 * rows, block], tl.float32), every)
    if with_sums:
        tl.store(box_sums + part, box)
        tl.store(dfl_sums + part, dfl)
        tl.store(clipped_counts + part, count)
        tl.store(clipped_lengths + part, length)


@triton.jit
def box_block(
    source, step, target, grad_step, points, scales, truth, first_slot, slot, a, mask,
    weight, box_scale, dfl_scale, width, height, reg_max: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """Sums of a block's box and distribution losses, number and largest length of its clipped sides; and gradients."""
    foreground = slot >= 0
    g = 4 * (first_slot + tl.maximum(slot, 0))
    x, y = tl.load(points + 2 * a, foreground, 0.0), tl.load(points + 2 * a + 1, foreground, 0.0)
    scale = tl.load(scales + a, foreground, 1.0)
    tx1 = tl.div_rn(tl.load(truth + g, foreground, 0.0), scale)
    ty1 = tl.div_rn(tl.load(truth + g + 1, foreground, 0.0), scale)
    tx2 = tl.div_rn(tl.load(truth + g + 2, foreground, 0.0), scale)
    ty2 = tl.div_rn(tl.load(truth + g + 3, foreground, 0.0), scale)
    left, top, right, bottom = distances_of(source, step, foreground, reg_max, rows)
    ciou, d1, d2, d3, d4 = ciou_and_slopes(x - left, y - top, x + right, y + bottom, tx1, ty1, tx2, ty2)
    # 1 - CIoU falls where CIoU rises; the left and upper sides move against their distances.
    d1, d2 = d1 * (box_scale * weight), d2 * (box_scale * weight)
    d3, d4 = -d3 * (box_scale * weight), -d4 * (box_scale * weight)
    t1, t2, t3, t4 = x - tx1, y - ty1, tx2 - x, ty2 - y
    share = dfl_scale * weight * 0.25
    if reg_max == 1:
        first = tl.load(scales)
        per_x, per_y = scale / (first * width), scale / (first * height)
        total = l1_side(left, t1, per_x, d1, share, target, mask, foreground)
        total += l1_side(top, t2, per_y, d2, share, below(target, grad_step), mask, foreground)
        total += l1_side(right, t3, per_x, d3, share, below(target, 2 * grad_step), mask, foreground)
        total += l1_side(bottom, t4, per_y, d4, share, below(target, 3 * grad_step), mask, foreground)
    else:
        total = dfl_side(source, step, left, t1, d1, share, target, grad_step, mask, foreground, 0, reg_max, rows)
        total += dfl_side(source, step, top, t2, d2, share, target, grad_step, mask, foreground, 1, reg_max, rows)
        total += dfl_side(source, step, right, t3, d3, share, target, grad_step, mask, foreground, 2, reg_max, rows)
        total += dfl_side(source, step, bottom, t4, d4, share, target, grad_step, mask, foreground, 3, reg_max, rows)
    box = tl.sum(tl.where(foreground, (1.0 - ciou) * weight, 0.0), 0)
    dfl = tl.sum(tl.where(foreground, total * 0.25 * weight, 0.0), 0)
    limit: tl.constexpr = reg_max - 1.0 - 0.01
    count, length = clipped_side(t1, scale, foreground, limit)
    for distance in tl.static_range(1, 4):
        side = t2 if distance == 1 else (t3 if distance == 2 else t4)
        more, longer = clipped_side(side, scale, foreground, limit)
        count, length = count + more, tl.maximum(length, longer)
    return box, dfl, count, length


@triton.jit
def below(target, offset):
    """Pointers ``offset`` further, or None."""
    return None if target is None else target + offset


@triton.jit
def clipped_side(distance, scale, foreground, limit: tl.constexpr):
    """How many target distances are beyond the last bin, and the largest of them in pixels."""
    clipped = foreground & (distance > limit)
    return tl.sum(clipped.to(tl.int32), 0), tl.max(tl.where(clipped, distance * scale, 0.0), 0)


@triton.jit
def l1_side(distance, wanted, per_cell, box_slope, share, target, mask, foreground):
    """Error of a side as a fraction of the image; writes its derivative with that of the box loss added."""
    error = distance - wanted
    if target is not None:
        sign = tl.where(error > 0.0, 1.0, tl.where(error < 0.0, -1.0, error))  # 0 and NaN stay
        tl.store(target, tl.where(foreground, box_slope + share * sign * per_cell, 0.0), mask)
    return tl.abs(error) * per_cell


@triton.jit
def dfl_side(
    source, step, distance, wanted, box_slope, share, target, grad_step, mask, foreground,
    side: tl.constexpr, reg_max: tl.constexpr, rows: tl.constexpr,
):  # fmt: skip
    """Cross-entropy of a side with its target; writes its derivative with that of the box loss added."""
    shifted = logits_below_largest(source, step, foreground, side, reg_max, rows)
    e = tl.exp(shifted)
    total = tl.sum(e, 0)
    r = tl.arange(0, rows)[:, None]
    limit: tl.constexpr = reg_max - 1.0 - 0.01
    inside = tl.minimum(tl.maximum(wanted, 0.0), limit)
    two_hot = tl.maximum(1.0 - tl.abs(inside[None, :] - r), 0.0)
    if target is not None:
        p = e / total[None, :]
        slope = p * (r - distance[None, :]) * box_slope[None, :]
        slope += (p * tl.sum(two_hot, 0)[None, :] - two_hot) * share[None, :]
        every = (r < reg_max) & mask[None, :]
        pointers = target[None, :] + (side * reg_max + r) * grad_step
        tl.store(pointers, tl.where(foreground[None, :], slope, 0.0), every)
    # Selected, not multiplied by 0: the logarithm of a bin beside the target may be infinite.
    products = tl.where(two_hot > 0.0, two_hot * (shifted - tl.log(total)[None, :]), 0.0)
    return -tl.sum(products, 0)


@triton.jit
def smaller(one, other):
    """Derivative of the minimum by its first argument: 1 where it is smaller, half where both are equal."""
    return tl.where(one < other, 1.0, tl.where(one == other, 0.5, 0.0))


@triton.jit
def ciou_and_slopes(px1, py1, px2, py2, tx1, ty1, tx2, ty2):
    """CIoU of predicted and target boxes, and its derivatives by the four predicted sides; none through the weight."""
    w, h, tw, th = px2 - px1, py2 - py1 + EPS, tx2 - tx1, ty2 - ty1 + EPS
    across = tl.minimum(px2, tx2) - tl.maximum(px1, tx1)
    down = tl.minimum(py2, ty2) - tl.maximum(py1, ty1)
    inter = tl.maximum(across, 0.0) * tl.maximum(down, 0.0)
    union = w * h + tw * th - inter + EPS
    iou = inter / union
    cw, ch = tl.maximum(px2, tx2) - tl.minimum(px1, tx1), tl.maximum(py2, ty2) - tl.minimum(py1, ty1)
    diagonal2 = cw * cw + ch * ch + EPS
    dx, dy = tx1 + tx2 - px1 - px2, ty1 + ty2 - py1 - py2
    distance = (dx * dx + dy * dy) * 0.25 / diagonal2
    ratio = w / h
    turn = arctangent(tw / th) - arctangent(ratio)
    aspect = ASPECT * (turn * turn)
    trade_off = aspect / (1.0 - iou + aspect + EPS)

    by_inter, by_area = (1.0 + iou) / union, -iou / union
    by_across = tl.where(across >= 0.0, by_inter * tl.maximum(down, 0.0), 0.0)
    by_down = tl.where(down >= 0.0, by_inter * tl.maximum(across, 0.0), 0.0)
    by_cw, by_ch = 2.0 * cw * distance / diagonal2, 2.0 * ch * distance / diagonal2
    by_angle = 2.0 * ASPECT * trade_off * turn / (1.0 + ratio * ratio)
    by_w, by_h = by_area * h + by_angle / h, by_area * w - by_angle * ratio / h
    pull_x, pull_y = dx * 0.5 / diagonal2, dy * 0.5 / diagonal2
    d1 = pull_x - by_w - by_across * smaller(tx1, px1) - by_cw * smaller(px1, tx1)
    d2 = pull_y - by_h - by_down * smaller(ty1, py1) - by_ch * smaller(py1, ty1)
    d3 = pull_x + by_w + by_across * smaller(px2, tx2) + by_cw * smaller(tx2, px2)
    d4 = pull_y + by_h + by_down * smaller(py2, ty2) + by_ch * smaller(ty2, py2)
    return iou - (distance + aspect * trade_off), d1, d2, d3, d4


@triton.jit
def combine(
    class_sums, box_sums, dfl_sums, weight_sums, clipped_counts, clipped_lengths,
    image_sums, loss, items, sides, longest, images, class_parts, box_parts, weight_parts,
    box_gain, class_gain, dfl_gain, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Sums of each image (B, 4), the loss () and its three parts (3,), and all clipped sides. A single program.

    ``rows`` is B rounded up to a power of two; ``block`` parts of every image are added at once.
    """
    b = tl.arange(0, rows)
    box = sums_of_images(box_sums, images, box_parts, rows, block)
    cls = sums_of_images(class_sums, images, class_parts, rows, block)
    dfl = sums_of_images(dfl_sums, images, box_parts, rows, block)
    weight = sums_of_images(weight_sums, images, weight_parts, rows, block)
    tl.store(image_sums + 4 * b, box, b < images)
    tl.store(image_sums + 4 * b + 1, cls, b < images)
    tl.store(image_sums + 4 * b + 2, dfl, b < images)
    tl.store(image_sums + 4 * b + 3, weight, b < images)
    normaliser = tl.maximum(tl.sum(weight, 0), 1.0)
    box_item = tl.div_rn(tl.sum(box, 0), normaliser) * box_gain
    class_item = tl.div_rn(tl.sum(cls, 0), normaliser) * class_gain
    dfl_item = tl.div_rn(tl.sum(dfl, 0), normaliser) * dfl_gain
    tl.store(items, box_item)
    tl.store(items + 1, class_item)
    tl.store(items + 2, dfl_item)
    tl.store(loss, (box_item + class_item + dfl_item) * images)
    count, length = tl.zeros([rows * block], tl.int32), tl.zeros([rows * block], tl.float32)
    for begin in range(0, images * box_parts, rows * block):
        part = begin + tl.arange(0, rows * block)
        count += tl.load(clipped_counts + part, part < images * box_parts, 0)
        length = tl.maximum(length, tl.load(clipped_lengths + part, part < images * box_parts, 0.0))
    tl.store(sides, tl.sum(count, 0).to(tl.int64))
    tl.store(longest, tl.max(length, 0))


@triton.jit
def sums_of_images(sums, images, parts, rows: tl.constexpr, block: tl.constexpr):
    """Sums (B,) of parts (B, parts), always in the same order."""
    b = tl.arange(0, rows)[:, None]
    total = tl.zeros([rows, block], tl.float32)
    for begin in range(0, parts, block):
        part = begin + tl.arange(0, block)[None, :]
        total += tl.load(sums + b * parts + part, (b < images) & (part < parts), 0.0)
    return tl.sum(total, 1)


@triton.jit
def scale_gradients(grads, numbers, grad_loss, block: tl.constexpr):
    """Multiply gradients of ``numbers`` elements each by a derivative (), in place; nothing is read where it is 1."""
    factor = tl.load(grad_loss)
    if factor != 1.0:
        for level in tl.static_range(len(grads)):
            for begin in range(tl.program_id(0) * block, numbers[level], tl.num_programs(0) * block):
                index = begin + tl.arange(0, block)
                value = tl.load(grads[level] + index, index < numbers[level], 0.0).to(tl.float32)
                tl.store(grads[level] + index, value * factor, index < numbers[level])
