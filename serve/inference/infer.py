"""Inference: from the bytes of a request to those of its response.

Requests of both APIs go through :func:`answer`. Each API decodes its own form into a :class:`PreparedRequest`; that of
the Open Inference Protocol is here, that of the v1 JSON API in :mod:`yolo_assigner.serve.v1`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, TypeVar

import orjson

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.detection.validate import check_inputs, check_outputs
from yolo_assigner.serve.errors import BadRequestError
from yolo_assigner.serve.inference.memory_estimate import check_memory
from yolo_assigner.serve.inference.model import Model
from yolo_assigner.serve.inference.registry import VERSION
from yolo_assigner.serve.inference.service import Call
from yolo_assigner.serve.shared_memory.regions import Regions
from yolo_assigner.serve.shared_memory.tensors import check_places, read_tensors, write_outputs
from yolo_assigner.serve.wire.dtypes import Array
from yolo_assigner.serve.wire.request import InferRequest, RequestedOutput, decode_request
from yolo_assigner.serve.wire.response import EncodedResponse, dump_json, encode_response

INLINE_BYTES = 1 << 16  # up to here a thread switch costs more than the work
Result = TypeVar("Result")
OnBegun = Callable[[], None] | None


class PreparedRequest(NamedTuple):
    """A request that fits its model.

    Attributes:
        inputs: As :func:`fit_inputs` returns them.
        outputs: Names of the outputs to compute.
        copied: Outputs that ``encode`` copies or writes as JSON; the others are sent from where they lie.
        encode: Writes the response from the computed outputs; callable in any thread.
        timeout: Microseconds that the request may wait for its model; None: it names none.
    """

    inputs: dict[str, Array]
    outputs: tuple[str, ...]
    copied: tuple[str, ...]
    encode: Callable[[dict[str, Array]], EncodedResponse]
    timeout: int | None = None


async def answer(
    model: Model,
    call: Call,
    prepare: Callable[[], Awaitable[PreparedRequest]],
    on_begun: OnBegun = None,
    began_ns: int | None = None,
) -> EncodedResponse:
    """Prepare a request, compute it, encode the response, and count all of that in the model's statistics.

    Args:
        model: Computes the request.
        call: Says how long the request may wait for its model.
        prepare: Decodes and checks the request.
        on_begun: Called in the engine's thread when computing begins.
        began_ns: When decoding began, by ``time.monotonic_ns``; None: now.

    Raises:
        ServeError: The request was refused or failed; the text says why.
    """
    began = time.monotonic_ns() if began_ns is None else began_ns
    try:
        request = await prepare()
        prepared = time.monotonic_ns()
        arrays = await model.infer(request.inputs, request.outputs, call.deadline(request.timeout), on_begun)
        computed = time.monotonic_ns()
        copied_bytes = sum(arrays[name].nbytes for name in request.copied)
        response = await off_loop(copied_bytes, lambda: request.encode(arrays))
    except BaseException:
        model.stats.failed(time.monotonic_ns() - began)
        raise
    model.stats.carried(prepared - began, time.monotonic_ns() - computed)
    return response


def fit_inputs(contract: Contract, inputs: Mapping[str, Array], max_work_bytes: int) -> dict[str, Array]:
    """Check inputs against a contract and the memory that computing them may need.

    Returns:
        The inputs in the order and types of the contract.

    Raises:
        BadRequestError: They do not fit the contract.
        TooLargeError: They would need too much memory.
    """
    checked = check_inputs(contract, inputs)
    check_memory(contract, checked, max_work_bytes)
    return checked


async def off_loop(size: int, work: Callable[[], Result]) -> Result:
    """Process so many bytes without delaying other requests: in a thread, unless they are few."""
    return work() if size <= INLINE_BYTES else await asyncio.to_thread(work)


async def infer(
    model: Model,
    call: Call,
    body: memoryview,
    regions: Regions | None,
    max_work_bytes: int,
    on_begun: OnBegun = None,
) -> EncodedResponse:
    """Answer ``POST /v2/models/{model}/infer``.

    Args:
        model: Computes the request.
        call: Says how much of the body is JSON, and how long the request may wait.
        body: JSON and raw tensors.
        regions: Shared memory in which tensors may lie; None: switched off.
        max_work_bytes: Most memory that computing the request may need.
        on_begun: Called in the engine's thread when computing begins.

    Raises:
        ServeError: The request was refused or failed; the text says why.
    """

    def decode() -> InferRequest:
        return decode_request(body, call.json_length, shared_memory=regions is not None)

    async def prepare() -> PreparedRequest:
        if len(body) > INLINE_BYTES:
            return await asyncio.to_thread(lambda: _prepare(model, decode(), regions, max_work_bytes))
        request = decode()  # a small one has to be read to know how much lies in shared memory
        return await off_loop(request.shared_bytes, lambda: _prepare(model, request, regions, max_work_bytes))

    return await answer(model, call, prepare, on_begun)


def _check_min_box_side(contract: Contract, assumed: str | None) -> None:
    """Refuse a request that leaves out anchors for another model, as one that has been reloaded since."""
    if assumed is None:
        return
    own = contract.hyperparameters.get("min_box_side")
    try:
        same = orjson.loads(assumed) == own
    except orjson.JSONDecodeError:
        same = False
    if not same:
        raise BadRequestError(
            f"parameters: min_box_side is {assumed!r}, but model {contract.name!r} has '{dump_json(own).decode()}' and "
            "may need other anchors; read its config again"
        )


def _prepare(model: Model, request: InferRequest, regions: Regions | None, max_work_bytes: int) -> PreparedRequest:
    contract = model.contract
    _check_min_box_side(contract, request.min_box_side)
    check_outputs(contract, [output.name for output in request.outputs])
    requested = request.outputs or tuple(
        RequestedOutput(name, request.binary_default) for name in contract.default_outputs
    )
    inputs = request.inputs
    if regions is not None:
        check_places(regions, requested)
        inputs = inputs | read_tensors(regions, request.shared)

    def encode(arrays: dict[str, Array]) -> EncodedResponse:
        if regions is not None:
            write_outputs(regions, requested, arrays)
        return encode_response(contract.name, VERSION, request.id, requested, arrays)

    names = tuple(output.name for output in requested)
    copied = tuple(output.name for output in requested if not output.binary)
    checked = fit_inputs(contract, inputs, max_work_bytes)
    return PreparedRequest(checked, names, copied, encode, request.timeout)
