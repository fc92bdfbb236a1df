"""The client's error."""

from __future__ import annotations


class ServerError(RuntimeError):
    """The server refused the request or could not be reached; the text is the reason.

    Attributes:
        status: HTTP status; None: there was no reply.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status
