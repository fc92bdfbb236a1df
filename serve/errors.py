"""What can go wrong with a request. Each error carries its HTTP status; one handler turns it into a reply."""

from __future__ import annotations

import errno
from typing import ClassVar


class ServeError(Exception):
    """A request that gets no result; the text is for the caller, so it names the value and the remedy.

    Attributes:
        status: HTTP status of the reply.
        headers: Extra headers of the reply.
        reason: What the metrics call it; None: as its status is called there.
    """

    status: ClassVar[int] = 500
    headers: ClassVar[dict[str, str]] = {}
    reason: ClassVar[str | None] = None


class BadRequestError(ServeError):
    """The request itself is wrong; sending it again unchanged will not help."""

    status = 400


class UnauthorizedError(ServeError):
    """A key is needed and none was sent."""

    status = 401
    headers: ClassVar[dict[str, str]] = {"WWW-Authenticate": "Bearer"}


class ForbiddenError(ServeError):
    """The key is not good for this, or the request names a host or a web page's origin that is not allowed."""

    status = 403


class NotFoundError(ServeError):
    """No such model, version or path."""

    status = 404


class TooSlowError(ServeError):
    """The body does not come; its connection is of no further use."""

    status = 408
    headers: ClassVar[dict[str, str]] = {"Connection": "close"}


class TooLargeError(ServeError):
    """The body, or what it asks for, is over the server's limit."""

    status = 413


class TooManyAttemptsError(ServeError):
    """Wrong keys keep coming; until that ends, keys from the same address are not looked at."""

    status = 429
    headers: ClassVar[dict[str, str]] = {"Retry-After": "10"}

    def __init__(self) -> None:
        super().__init__("too many requests with wrong keys; wait 10 s and send the right one")


class InferenceError(ServeError):
    """The engine failed on an input that passed every check."""

    status = 500


class UnsupportedError(ServeError):
    """A part of the protocol that this server does not implement or has switched off."""

    status = 501


class NotReadyError(ServeError):
    """Loading or warming up; the same request will be served soon."""

    status = 503
    reason = "not_ready"
    headers: ClassVar[dict[str, str]] = {"Retry-After": "1"}


class ModelFailedError(ServeError):
    """The model could not be loaded; waiting does not help, so callers are not asked to come again."""

    status = 503
    reason = "model_failed"


class StuckError(ServeError):
    """The engines' process cannot be started; a restart of the server is left to try."""

    status = 503
    reason = "stuck"


class BusyError(ServeError):
    """As much is under way as is allowed, or the server is about to stop."""

    status = 503
    headers: ClassVar[dict[str, str]] = {"Retry-After": "1"}


class TooLateError(ServeError):
    """The request's time was over before its model got to it."""

    status = 504


def exhausted(error: BaseException) -> BusyError | None:
    """The answer to a request for which the system had no file descriptor or no memory left; None for other errors."""
    code = errno.ENOMEM if isinstance(error, MemoryError) else error.errno if isinstance(error, OSError) else None
    if code == errno.ENOMEM:
        return BusyError("the server has no memory left for this request; try again in a moment, or send fewer images")
    if code in (errno.EMFILE, errno.ENFILE):
        return BusyError(
            "the server has no file descriptors left for this request; try again in a moment, or raise `ulimit -n`"
        )
    return None


class ClientDisconnectedError(Exception):
    """The caller hung up before its request was complete; nobody is left to answer."""
