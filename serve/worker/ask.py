"""One call of the engines' process, and how long it is waited for."""

from __future__ import annotations

import asyncio
import time

import orjson

from yolo_assigner.serve.compute.service import Call, Verb
from yolo_assigner.serve.errors import InferenceError, TooLateError
from yolo_assigner.serve.tensors.encode import EncodedResponse
from yolo_assigner.serve.worker.process import WorkerProcess
from yolo_assigner.serve.worker.segments import INLINE_BYTES


async def ask(process: WorkerProcess, call: Call, body: memoryview, deadline: float | None) -> EncodedResponse:
    """Send a call to a process and wait for what comes back, or until the deadline while no engine has begun."""
    number = process.begin(call, body)
    answer = process.answer(number)
    try:
        if deadline is not None:
            await asyncio.wait({answer}, timeout=max(deadline - time.monotonic(), 0.0))
            if not (answer.done() or process.has_begun(number)):
                raise too_late()
        return await asyncio.shield(answer)  # whoever stops waiting must not make it look answered
    finally:
        process.give_up(number)
        del answer  # an error that refers to itself would keep the body's memory


def ended_meanwhile() -> InferenceError:
    """For a request that was being computed."""
    return InferenceError("the engines' process ended while it computed this request; the server's log says why")


def too_late() -> TooLateError:
    """For a request that no engine had begun with."""
    return TooLateError("the time of this request was over before its model got to it")


def deadline_of(call: Call, body: memoryview) -> float | None:
    """Until when to wait here.

    What a request itself allows is read where that costs next to nothing. Larger JSON is for the worker, which then
    judges its deadline alone.
    """
    size = len(body) if call.json_length is None else call.json_length
    if call.verb != Verb.INFER:
        return call.deadline()
    if not 0 < size <= min(len(body), INLINE_BYTES):
        return None
    text = bytes(body[:size])
    if b'"timeout"' not in text:
        return call.deadline()
    try:
        value = orjson.loads(text)["parameters"]["timeout"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None  # the worker says what is wrong with it
    return call.deadline(value if type(value) is int and value > 0 else None)
