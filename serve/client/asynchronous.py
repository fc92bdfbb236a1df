"""The client for asyncio."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from yolo_assigner.serve.client.client import AssignerClient

P = ParamSpec("P")
T = TypeVar("T")


def _awaited(
    method: Callable[Concatenate[AssignerClient, P], T],
) -> Callable[Concatenate[AsyncAssignerClient, P], Coroutine[Any, Any, T]]:
    @functools.wraps(method)
    async def call(self: AsyncAssignerClient, /, *arguments: P.args, **named: P.kwargs) -> T:
        client = self.client
        return await asyncio.wrap_future(client.submit(method, client, *arguments, **named))

    return call


class AsyncAssignerClient:
    """:class:`AssignerClient` whose methods are awaited.

    The same code in threads, of which ``concurrency`` run at the same time; further calls wait. Cancelling a call that
    has begun gives up its result, not the request::

        async with AsyncAssignerClient("localhost:8000") as client:
            one, other = await asyncio.gather(client.loss(feats, batch), client.loss(feats, other_batch))

    Args:
        url: As for :class:`AssignerClient`.
        **options: As for :class:`AssignerClient`.

    Raises:
        ValueError: As :class:`AssignerClient`.
    """

    def __init__(self, url: str | Sequence[str], **options: Any) -> None:
        self.client = AssignerClient(url, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait for requests that are under way, and close the connections."""
        await asyncio.to_thread(self.client.close)

    loss = _awaited(AssignerClient.loss)
    loss_and_gradients = _awaited(AssignerClient.loss_and_gradients)
    explain = _awaited(AssignerClient.explain)
    detector_loss = _awaited(AssignerClient.detector_loss)
    detector_explain = _awaited(AssignerClient.detector_explain)
    assign = _awaited(AssignerClient.assign)
    assign_from_maps = _awaited(AssignerClient.assign_from_maps)
    infer = _awaited(AssignerClient.infer)
