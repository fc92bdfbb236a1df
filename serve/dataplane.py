"""What the protocol's endpoints answer, in plain types. :mod:`serve.rest_v2` puts it on HTTP."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from export.contract import TensorSpec
from serve.core import PLATFORM, VERSION, Model
from serve.datatypes import Array, wire_name
from serve.decode import RequestedOutput, decode_request
from serve.encode import EncodedResponse, encode_response
from serve.validate import check_inputs, check_outputs

EXTENSIONS = ["binary_tensor_data"]
Result = TypeVar("Result")
INLINE_BYTES = 1 << 16  # up to here a thread switch costs more than the work


def server_metadata() -> dict[str, Any]:
    """Row 4: name, version and the extensions that are implemented."""
    try:
        version = importlib.metadata.version("yolo-assigner")
    except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
        version = "0"
    return {"name": "yolo-assigner", "version": version, "extensions": EXTENSIONS}


def model_metadata(model: Model) -> dict[str, Any]:
    """Row 5. Outputs that are only sent when named say ``"parameters": {"default": false}``."""
    contract = model.contract
    outputs = [_describe(spec) | {"parameters": {"default": not spec.heavy}} for spec in contract.outputs]
    return {
        "name": contract.name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [_describe(spec) for spec in contract.inputs],
        "outputs": outputs,
    }


def _describe(spec: TensorSpec) -> dict[str, Any]:
    shape = [axis if isinstance(axis, int) else -1 for axis in spec.axes]
    return {"name": spec.name, "datatype": wire_name(spec.dtype), "shape": shape}


async def infer(model: Model, body: memoryview, header_length: int | None) -> EncodedResponse:
    """Row 6: from the bytes of a request to those of its reply.

    Args:
        model: The one that was asked.
        body: JSON and raw tensors.
        header_length: Bytes of JSON; None when all of it is.

    Raises:
        ServeError: The request is refused or failed; the text says why.
    """
    job = await aside(len(body), lambda: _prepare(model, body, header_length))
    arrays = await model.infer(job.inputs, [output.name for output in job.wanted])
    written = sum(arrays[output.name].nbytes for output in job.wanted if not output.binary)
    name = model.contract.name
    return await aside(written, lambda: encode_response(name, VERSION, job.id, job.wanted, arrays))


async def aside(size: int, work: Callable[[], Result]) -> Result:
    """Do work on so many bytes where it does not hold up other callers: in a thread, unless it is tiny."""
    return work() if size <= INLINE_BYTES else await asyncio.to_thread(work)


class _Job(NamedTuple):
    """A request that fits its model."""

    id: str | None
    inputs: dict[str, Array]
    wanted: tuple[RequestedOutput, ...]


def _prepare(model: Model, body: memoryview, header_length: int | None) -> _Job:
    contract = model.contract
    request = decode_request(body, header_length)
    check_outputs(contract, [output.name for output in request.outputs])
    wanted = request.outputs or tuple(
        RequestedOutput(name, request.binary_default) for name in contract.default_outputs
    )
    return _Job(request.id, check_inputs(contract, request.inputs), wanted)
