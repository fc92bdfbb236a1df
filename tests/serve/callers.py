"""The protocol's client library in both its forms, called in one way."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, aio

from yolo_assigner.serve.wire.dtypes import Array, wire_name

LIBRARIES = ("http", "http.aio")


class Caller:
    """A client of either form; what its methods return has been waited for.

    Args:
        client: The library's.
        run: What waits for a coroutine.
    """

    def __init__(self, client: Any, run: Callable[[Any], Any]) -> None:
        self._client, self._run = client, run

    def __call__(self, method: str, *values: Any, **options: Any) -> Any:
        """Call a method of the library."""
        result = getattr(self._client, method)(*values, **options)
        return self._run(result) if inspect.iscoroutine(result) else result

    def ask(
        self,
        model: str,
        arrays: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        *,
        binary_in: bool = True,
        binary_out: bool = True,
        compression: str | None = None,
        **options: Any,
    ) -> Any:
        """Infer."""
        inputs = []
        for name, array in arrays.items():
            tensor = InferInput(name, list(array.shape), wire_name(array.dtype))
            inputs.append(tensor.set_data_from_numpy(array, binary_data=binary_in))
        wanted = [InferRequestedOutput(name, binary_data=binary_out) for name in outputs] if outputs else None
        packing = {f"{what}_compression_algorithm": compression for what in ("request", "response")}
        return self("infer", model, inputs, outputs=wanted, **packing, **options)


class _Reading(aio.InferenceServerClient):  # type: ignore[misc]
    """Reads every reply to its end; the library does not where a status is enough, and aiohttp then warns."""

    async def _get(self, *values: Any, **options: Any) -> Any:
        reply = await super()._get(*values, **options)
        await reply.read()
        return reply

    async def _post(self, *values: Any, **options: Any) -> Any:
        reply = await super()._post(*values, **options)
        await reply.read()
        return reply


@contextmanager
def calling(library: str, url: str) -> Iterator[Caller]:
    """A client of one form, closed in the end."""
    if library == "http":
        with InferenceServerClient(url) as client:
            yield Caller(client, lambda result: result)
        return
    with asyncio.Runner() as runner:

        async def connected() -> _Reading:
            return _Reading(url)

        client = runner.run(connected())
        try:
            yield Caller(client, runner.run)
        finally:
            runner.run(client.close())
