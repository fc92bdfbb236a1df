"""Reading the headers of requests."""

from __future__ import annotations

from starlette.datastructures import Headers

from yolo_assigner.serve.errors import BadRequestError

LONGEST_NUMBER = 18  # digits


def header_number(headers: Headers, name: str) -> int | None:
    """A header that counts bytes; None when it is absent.

    Raises:
        BadRequestError: It is not a whole number.
    """
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER):
        raise BadRequestError(f"{name} is {text!r}; write a whole number of bytes")
    return int(text)
