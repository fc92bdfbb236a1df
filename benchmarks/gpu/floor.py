"""The bytes that must move, and how long that takes at the speed at which the device copies.

Counted once for each input that is read and each output that is written. No intermediate is counted: a program that
writes one to memory and reads it again moves more than its floor. The scores of classes that no box has are counted as
read, too, although nobody needs them.
"""

from __future__ import annotations

from benchmarks.contenders import STRIDES, Setting

REG_MAX = 16
FLOAT, LONG, FLAG = 4, 8, 1


def bytes_of(setting: Setting, element: int) -> int:
    """Bytes that must move.

    Args:
        setting: What is computed.
        element: Bytes of a class score, or of a logit of a map.
    """
    truth = setting.batch * setting.slots * (LONG + 4 * FLOAT + FLAG)
    if setting.task == "assigner":
        return truth + _assigner(setting, element)
    maps = setting.batch * anchors_of(setting) * (4 * REG_MAX + setting.classes) * element
    # The gradients are as large as the maps; the loss and its three terms are a few bytes.
    return truth + maps * (2 if setting.task == "loss+grad" else 1)


def _assigner(setting: Setting, element: int) -> int:
    anchors = anchors_of(setting)
    read = setting.classes * element + 4 * FLOAT  # scores and boxes
    written = LONG + 4 * FLOAT + setting.classes * FLOAT + FLAG + LONG  # labels, boxes, scores, mask, slots
    return anchors * 2 * FLOAT + setting.batch * anchors * (read + written)


def anchors_of(setting: Setting) -> int:
    """A."""
    return sum(max(int(setting.image // stride), 1) ** 2 for stride in STRIDES)


def floor_ms(setting: Setting, element: int, bytes_per_second: float) -> float:
    """Milliseconds in which the device copies so many bytes.

    Args:
        setting: What is computed.
        element: Bytes of a class score, or of a logit of a map.
        bytes_per_second: What a copy moves, read and written bytes together.
    """
    return 1000 * bytes_of(setting, element) / bytes_per_second
