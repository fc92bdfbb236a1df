"""The protocol's infer request: from its bytes to those of its reply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from yolo_assigner.serve.detection.validate import check_inputs, check_outputs
from yolo_assigner.serve.inference.memory_estimate import check_memory
from yolo_assigner.serve.inference.model import Model
from yolo_assigner.serve.inference.registry import VERSION
from yolo_assigner.serve.inference.service import Call
from yolo_assigner.serve.shared_memory.regions import Regions
from yolo_assigner.serve.shared_memory.tensors import check_places, read_tensors, write_outputs
from yolo_assigner.serve.wire.dtypes import Array
from yolo_assigner.serve.wire.request import InferRequest, RequestedOutput, decode_request
from yolo_assigner.serve.wire.response import EncodedResponse, encode_response

Result = TypeVar("Result")
INLINE_BYTES = 1 << 16  # up to here a thread switch costs more than the work


async def infer(
    model: Model,
    call: Call,
    body: memoryview,
    regions: Regions | None,
    max_work_bytes: int,
    on_begun: Callable[[], None] | None = None,
) -> EncodedResponse:
    """Row 6 of the protocol.

    Args:
        model: The one that was asked.
        call: How much of the body is JSON, and how long it may wait.
        body: JSON and raw tensors.
        regions: Shared memory in which tensors may lie; None: switched off.
        max_work_bytes: Most memory that computing it may need.
        on_begun: Told when the engine begins with it.

    Raises:
        ServeError: The request is refused or failed; the text says why.
    """
    begun = time.monotonic_ns()
    try:
        job = await _job(model, body, call.json_length, regions, max_work_bytes)
        read = time.monotonic_ns()
        names = [output.name for output in job.wanted]
        arrays = await model.infer(job.inputs, names, call.deadline(job.timeout), on_begun)
        computed = time.monotonic_ns()
        written = sum(arrays[output.name].nbytes for output in job.wanted if not output.binary)
        response = await aside(written, lambda: _respond(model, job, arrays, regions))
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


async def _job(
    model: Model, body: memoryview, json_length: int | None, regions: Regions | None, max_work_bytes: int
) -> _Job:
    def decode() -> InferRequest:
        return decode_request(body, json_length, shared_memory=regions is not None)

    def prepare(request: InferRequest) -> _Job:
        return _prepare(model, request, regions, max_work_bytes)

    if len(body) > INLINE_BYTES:
        return await asyncio.to_thread(lambda: prepare(decode()))
    request = decode()  # only a small one has to be read to know how much lies in shared memory
    return await aside(request.shared_bytes, lambda: prepare(request))


def _prepare(model: Model, request: InferRequest, regions: Regions | None, max_work_bytes: int) -> _Job:
    contract = model.contract
    check_outputs(contract, [output.name for output in request.outputs])
    wanted = request.outputs or tuple(
        RequestedOutput(name, request.binary_default) for name in contract.default_outputs
    )
    inputs = request.inputs
    if regions is not None:
        check_places(regions, wanted)
        inputs = inputs | read_tensors(regions, request.shared)
    checked = check_inputs(contract, inputs)
    check_memory(contract, checked, max_work_bytes)
    return _Job(request.id, checked, wanted, request.timeout)


def _respond(model: Model, job: _Job, arrays: dict[str, Array], regions: Regions | None) -> EncodedResponse:
    if regions is not None:
        write_outputs(regions, job.wanted, arrays)
    return encode_response(model.contract.name, VERSION, job.id, job.wanted, arrays)
