"""How many parts JSON may have. Small parts take far more memory and time to read than to send."""

from __future__ import annotations

from yolo_assigner.serve.errors import BadRequestError

# An empty list costs 60 bytes for two, numbers cost 15 for two: tensors are lists of many numbers.
MAX_LISTS = 2**20
# Of keys and values; what a request needs is some dozens, and eight for each image of a reduced batch.
MAX_STRINGS = 2**18


def check_parts(text: bytes) -> None:
    """Refuse JSON that would cost more than its size suggests.

    Args:
        text: Whatever was sent; brackets inside strings are counted too.

    Raises:
        BadRequestError: It has too many parts.
    """
    lists = text.count(b"[") + text.count(b"{")
    if lists > MAX_LISTS:
        raise BadRequestError(
            f"the JSON has {lists} lists and objects, {MAX_LISTS} is the most that is read; write tensors flat, or "
            "send them as binary"
        )
    strings = text.count(b'"') // 2
    if strings > MAX_STRINGS:
        raise BadRequestError(f"the JSON has {strings} strings; {MAX_STRINGS} is the most that is read")
