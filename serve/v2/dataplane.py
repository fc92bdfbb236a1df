"""What the protocol's endpoints answer, in plain types. :mod:`serve.v2.routes` puts it on HTTP."""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from export.contract import TensorSpec
from serve.engine.model import Model
from serve.engine.registry import VERSION
from serve.engine.work import check_work
from serve.options import AppOptions
from serve.shared.regions import Regions
from serve.shared.tensor import check_places, read_tensors, write_outputs
from serve.tensors.datatypes import Array, wire_name
from serve.tensors.decode import InferRequest, RequestedOutput, decode_request
from serve.tensors.encode import EncodedResponse, encode_response
from serve.tensors.validate import check_inputs, check_outputs

EXTENSIONS = ["binary_tensor_data"]
SHARED_MEMORY = "system_shared_memory"
Result = TypeVar("Result")
INLINE_BYTES = 1 << 16  # up to here a thread switch costs more than the work


def server_metadata(*, shared_memory: bool = False) -> dict[str, Any]:
    """Row 4: name, version and the extensions that can be used."""
    try:
        version = importlib.metadata.version("yolo-assigner")
    except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
        version = "0"
    return {"name": "yolo-assigner", "version": version, "extensions": EXTENSIONS + [SHARED_MEMORY] * shared_memory}


def model_metadata(model: Model) -> dict[str, Any]:
    """Row 5. Outputs that are only sent when named say ``"parameters": {"default": false}``."""
    contract = model.contract
    outputs = [_describe(spec) | {"parameters": {"default": not spec.heavy}} for spec in contract.outputs]
    return {
        "name": contract.name,
        "versions": [VERSION],
        "platform": model.platform,
        "inputs": [_describe(spec) for spec in contract.inputs],
        "outputs": outputs,
    }


def _describe(spec: TensorSpec) -> dict[str, Any]:
    shape = [axis if isinstance(axis, int) else -1 for axis in spec.axes]
    return {"name": spec.name, "datatype": wire_name(spec.dtype), "shape": shape}


async def infer(model: Model, body: memoryview, header_length: int | None, options: AppOptions) -> EncodedResponse:
    """Row 6: from the bytes of a request to those of its reply.

    Args:
        model: The one that was asked.
        body: JSON and raw tensors.
        header_length: Bytes of JSON; None when all of it is.
        options: Limits, and shared memory in which tensors may lie.

    Raises:
        ServeError: The request is refused or failed; the text says why.
    """
    begun = time.monotonic_ns()
    try:
        job = await _job(model, body, header_length, options)
        read = time.monotonic_ns()
        names = [output.name for output in job.wanted]
        arrays = await model.infer(job.inputs, names, options.deadline(job.timeout))
        computed = time.monotonic_ns()
        written = sum(arrays[output.name].nbytes for output in job.wanted if not output.binary)
        response = await aside(written, lambda: _respond(model, job, arrays, options.regions))
    except BaseException:
        model.stats.failed(time.monotonic_ns() - begun)
        raise
    model.stats.carried(read - begun, time.monotonic_ns() - computed)
    return response


async def aside(size: int, work: Callable[[], Result]) -> Result:
    """Do work on so many bytes where it does not hold up other callers: in a thread, unless it is tiny."""
    return work() if size <= INLINE_BYTES else await asyncio.to_thread(work)


class _Job(NamedTuple):
    """A request that fits its model."""

    id: str | None
    inputs: dict[str, Array]
    wanted: tuple[RequestedOutput, ...]
    timeout: int | None


async def _job(model: Model, body: memoryview, header_length: int | None, options: AppOptions) -> _Job:
    def decode() -> InferRequest:
        return decode_request(body, header_length, shared_memory=options.regions is not None)

    if len(body) > INLINE_BYTES:
        return await asyncio.to_thread(lambda: _prepare(model, decode(), options))
    request = decode()  # only a small one has to be read to know how much lies in shared memory
    return await aside(request.shared_bytes, lambda: _prepare(model, request, options))


def _prepare(model: Model, request: InferRequest, options: AppOptions) -> _Job:
    contract, regions = model.contract, options.regions
    check_outputs(contract, [output.name for output in request.outputs])
    wanted = request.outputs or tuple(
        RequestedOutput(name, request.binary_default) for name in contract.default_outputs
    )
    inputs = request.inputs
    if regions is not None:
        check_places(regions, wanted)
        inputs = inputs | read_tensors(regions, request.shared)
    checked = check_inputs(contract, inputs)
    check_work(contract, checked, options.max_work_bytes)
    return _Job(request.id, checked, wanted, request.timeout)


def _respond(model: Model, job: _Job, arrays: dict[str, Array], regions: Regions | None) -> EncodedResponse:
    if regions is not None:
        write_outputs(regions, job.wanted, arrays)
    return encode_response(model.contract.name, VERSION, job.id, job.wanted, arrays)
