"""Work for callers who may hang up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from yolo_assigner.serve.errors import ClientGoneError

Result = TypeVar("Result")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Do work, and drop it when its caller hangs up.

    Args:
        receive: ASGI receive of a request whose body has been read; the next message says that the caller is gone.
        work: Cancelled then; what already runs in an engine's thread ends by itself and its result is dropped.

    Raises:
        ClientGoneError: The caller hung up first.
    """
    doing = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({doing, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientGoneError
        return doing.result()
    finally:
        for task in (doing, listening):
            task.cancel()
        await asyncio.gather(doing, listening, return_exceptions=True)
        del doing, listening, task  # an error that refers to itself would keep the body's memory


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
