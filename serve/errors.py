"""Errors of requests. Each has its HTTP status; one handler turns it into a reply."""

from __future__ import annotations

import errno
from typing import ClassVar


class ServeError(Exception):
    """A request without a result. The text is for the caller: it names the value and the remedy.

    Attributes:
        status: HTTP status of the reply.
        headers: Extra headers of the reply.
        reason: Label of the failures metric; that of the status when None.
    """

    status: ClassVar[int] = 500
    headers: ClassVar[dict[str, str]] = {}
    reason: ClassVar[str | None] = None


class BadRequestError(ServeError):
    """The request is wrong; sending it again unchanged does not help."""

    status = 400


class UnauthorizedError(ServeError):
    """A key is needed and none was sent."""

    status = 401
    headers: ClassVar[dict[str, str]] = {"WWW-Authenticate": "Bearer"}


class ForbiddenError(ServeError):
    """The key is not accepted here, or the request names a host or origin that is not allowed."""

    status = 403


class NotFoundError(ServeError):
    """There is no such model, version or path."""

    status = 404


class TooSlowError(ServeError):
    """The body comes too slowly; its connection is closed."""

    status = 408
    headers: ClassVar[dict[str, str]] = {"Connection": "close"}


class TooLargeError(ServeError):
    """The body, or the memory that it needs, is over a limit of the server."""

    status = 413


class TooManyAttemptsError(ServeError):
    """Many wrong keys came from the same network; until that ends, its keys are not compared."""

    status = 429
    headers: ClassVar[dict[str, str]] = {"Retry-After": "10"}

    def __init__(self) -> None:
        super().__init__("too many requests with wrong keys; wait 10 s and send the right one")


class InferenceError(ServeError):
    """The engine failed on inputs that passed every check."""

    status = 500


class UnsupportedError(ServeError):
    """A part of the protocol that this server does not implement or has switched off."""

    status = 501


class NotReadyError(ServeError):
    """A model is being loaded; the same request will be served soon."""

    status = 503
    reason = "not_ready"
    headers: ClassVar[dict[str, str]] = {"Retry-After": "1"}


class ModelFailedError(ServeError):
    """A model could not be loaded. There is no ``Retry-After``, because waiting does not help."""

    status = 503
    reason = "model_failed"


class StuckError(ServeError):
    """The engine process cannot be started; only a restart of the server may help."""

    status = 503
    reason = "stuck"


class BusyError(ServeError):
    """The limits of what may be under way are reached, or the server is about to stop."""

    status = 503
    headers: ClassVar[dict[str, str]] = {"Retry-After": "1"}


class TooLateError(ServeError):
    """The request's deadline passed before its model was free."""

    status = 504


def exhausted(error: BaseException) -> BusyError | None:
    """The error to answer with when the system has no file descriptor or no memory left; None for other causes."""
    code = errno.ENOMEM if isinstance(error, MemoryError) else error.errno if isinstance(error, OSError) else None
    if code == errno.ENOMEM:
        return BusyError("the server has no memory left for this request; try again in a moment, or send fewer images")
    if code in (errno.EMFILE, errno.ENFILE):
        return BusyError(
            "the server has no file descriptors left for this request; try again in a moment, or raise `ulimit -n`"
        )
    return None


class ClientDisconnectedError(Exception):
    """The caller disconnected before it was answered."""
