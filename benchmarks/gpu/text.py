"""What errors say."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """What an error says, without pages of it."""
    lines = str(error).strip().splitlines() or ["no text"]
    return lines[0][:300]
