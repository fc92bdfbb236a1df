"""Device functions of the kernels: powers, arctangent, logarithm, complete IoU, and access to points and levels.

All values are float32 unless said otherwise. ``a`` counts anchors over all levels, ``b`` images.
"""

from __future__ import annotations

import triton
import triton.language as tl

HALF_PI = tl.constexpr(1.5707963267948966)
# Added to heights, unions and squared diagonals, as ``yolo_loss.boxes.EPS``.
EPS = tl.constexpr(1e-7)


@triton.jit
def power(base, exponent: tl.constexpr):
    """``yolo_loss.assignment.params.power``: products for whole and half exponents up to 16.5, else exp2 and log2."""
    whole: tl.constexpr = int(exponent)
    if exponent == 0:
        result = tl.zeros_like(base) + 1.0
    elif whole > 16 or (whole != exponent and whole + 0.5 != exponent):
        positive = base > 0.0
        logarithm = tl.log2(tl.where(positive, base, 1.0))
        result = tl.where(positive, tl.exp2(exponent * logarithm), base)  # 0 and NaN stay
    elif whole == 0:
        result = tl.sqrt_rn(base)
    elif whole == exponent:
        result = whole_power(base, whole)
    else:
        result = whole_power(base, whole) * tl.sqrt_rn(base)
    return result


@triton.jit
def whole_power(base, whole: tl.constexpr):
    """base^whole from 1 to 16, multiplied in the order of ``yolo_loss.assignment.params``."""
    square = base
    result = base
    for bit in tl.static_range(5):
        if (whole >> bit) & 1:
            result = square if (whole & ((1 << bit) - 1)) == 0 else result * square
        square = square * square
    return result


@triton.jit
def arctangent(value):
    """Arctangent to about 2 units in the last place, by a polynomial in its square fitted on [0, 1]."""
    size = tl.abs(value)
    large = size > 1.0
    small = tl.where(large, tl.div_rn(1.0, tl.where(large, size, 1.0)), size)
    z = small * small
    p = -0.00175392798 * z + 0.0107269343
    p = p * z - 0.0308045791
    p = p * z + 0.057552084
    p = p * z - 0.083773144
    p = p * z + 0.109420303
    p = p * z - 0.14261933
    p = p * z + 0.19998266
    p = p * z - 0.333332836
    p = p * z + 1.0
    angle = small * p
    angle = tl.where(large, HALF_PI - angle, angle)
    return tl.where(value < 0.0, -angle, angle)


@triton.jit
def log1p_of_fraction(y):
    """log(1 + y) for y from 0 to 1, to about 3 units in the last place, by a polynomial fitted there."""
    p = -0.00324402119 * y + 0.0198514444
    p = p * y - 0.0569595005
    p = p * y + 0.106036515
    p = p * y - 0.153055906
    p = p * y + 0.196759386
    p = p * y - 0.249541335
    p = p * y + 0.333299624
    p = p * y - 0.499999024
    p = p * y + 1.0
    return y * p


@triton.jit
def point_at(points, point_steps, scales, a, mask):
    """Pixel coordinates x and y of anchor points: ``points`` (A, 2) times ``scales`` (A,), or as they are."""
    x = tl.load(points + a * point_steps[0], mask, 0.0)
    y = tl.load(points + a * point_steps[0] + point_steps[1], mask, 0.0)
    if scales is not None:
        scale = tl.load(scales + a, mask, 0.0)
        x, y = x * scale, y * scale
    return x, y


@triton.jit
def distance_inside(x, y, x1, y1, x2, y2):
    """Distance of points from the nearest side of a box, positive inside."""
    return tl.minimum(tl.minimum(x - x1, x2 - x), tl.minimum(y - y1, y2 - y))


@triton.jit
def score_at(scores, steps, sizes, b, c, a, mask):
    """Class scores of anchors, each read from its own level (B, C, A_i)."""
    total = tl.zeros_like(a).to(tl.float32)
    begin = 0
    for level in tl.static_range(len(scores)):
        here = mask & (a >= begin) & (a < begin + sizes[level])
        offset = b.to(tl.int64) * steps[level][0] + c.to(tl.int64) * steps[level][1] + (a - begin) * steps[level][2]
        total += tl.load(scores[level] + offset, here, 0.0).to(tl.float32)
        begin += sizes[level]
    return total


@triton.jit
def box_angle(x1, y1, x2, y2):
    """Angle of the diagonal, atan(w / h)."""
    return arctangent(tl.div_rn(x2 - x1, y2 - y1 + EPS))


@triton.jit
def iou_above_zero(gx1, gy1, gx2, gy2, gangle, px1, py1, px2, py2):
    """max(CIoU, 0) of ground truths and predicted boxes, with NaN as 0; the sums in the order of ``boxes.ciou``."""
    width = tl.maximum(tl.minimum(gx2, px2) - tl.maximum(gx1, px1), 0.0)
    height = tl.maximum(tl.minimum(gy2, py2) - tl.maximum(gy1, py1), 0.0)
    inter = width * height
    garea, parea = (gx2 - gx1) * (gy2 - gy1 + EPS), (px2 - px1) * (py2 - py1 + EPS)
    iou = tl.div_rn(inter, garea + parea - inter + EPS)
    x, y = px1 + px2 - gx1 - gx2, py1 + py2 - gy1 - gy2
    across, down = tl.maximum(gx2, px2) - tl.minimum(gx1, px1), tl.maximum(gy2, py2) - tl.minimum(gy1, py1)
    distance = tl.div_rn((x * x + y * y) * 0.25, across * across + down * down + EPS)
    turn = box_angle(px1, py1, px2, py2) - gangle
    aspect = 0.40528473456935116 * (turn * turn)  # 4 / pi^2
    ciou = iou - (distance + aspect * tl.div_rn(aspect, 1.0 - iou + aspect + EPS))
    return tl.where(ciou > 0.0, ciou, 0.0)
