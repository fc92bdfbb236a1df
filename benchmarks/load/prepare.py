"""Expected answers of ``benchmarks.load``: those of the idle server, checked with ONNX Runtime without a server."""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from tqdm import tqdm

from benchmarks.common.client import Payload, connected, register, send
from benchmarks.load.cases import (
    INPUTS,
    NARROW,
    OWNER,
    PREFIX,
    Case,
    fill,
    inputs_of,
    make,
    offsets,
    payload_of,
    region_of,
    written,
)
from benchmarks.load.client import Prepared
from benchmarks.load.probe import URGENT
from tests.serve.hostile.wire import Wire
from yolo_assigner.export.contract import load_contract
from yolo_assigner.serve.detection.validate import check_inputs
from yolo_assigner.serve.wire.dtypes import NUMPY_TYPES, Array

URGENT_BYTES = 2**20  # largest request that is also sent with a deadline


class _Output(NamedTuple):
    """One output of a reply, as an array and as the bytes of its values."""

    array: Array
    raw: bytes


def prepare(port: int, cases: Sequence[Case], memory: dict[str, mmap.mmap]) -> list[Prepared]:
    """Send each case alone and keep its answer.

    Args:
        port: Port of a server without other requests.
        cases: The cases.
        memory: Objects of shared memory by region; those made here are added.
    """
    shown = tqdm(cases, desc="answers alone", file=sys.stderr)
    with closing(connected(port)) as wire:
        return [_prepare(wire, number, case, memory) for number, case in enumerate(shown)]


def _prepare(wire: Wire, number: int, case: Case, memory: dict[str, mmap.mmap]) -> Prepared:
    payload = payload_of(case, number)
    if payload.shared:
        name = INPUTS.format(number)
        sizes = [array.nbytes for array in payload.shared.values()]
        memory[name] = make(name, offsets([*sizes, 0])[-1])
        fill(memory[name], payload)
        _register(wire, name, memory[name])
    reply = send(wire, payload)
    if payload.shared:
        outputs = {name: output.raw for name, output in outputs_of(reply).items()}
        places = {name: len(raw) for name, raw in outputs.items()}
        payload = payload_of(case, number, places)
        return Prepared(case, payload, None, b"", outputs)
    urgent = payload_of(case, number, timeout=URGENT) if _may_be_urgent(case, payload) else None
    return Prepared(case, payload, urgent, reply, {})


def _may_be_urgent(case: Case, payload: Payload) -> bool:
    return case.form == "binary" and payload.size <= URGENT_BYTES


def regions_for(owners: int, cases: list[Prepared], port: int, memory: dict[str, mmap.mmap]) -> None:
    """Register a region of outputs for every connection, and keep the replies of requests that write there."""
    largest = max(sum(len(raw) + 64 for raw in prepared.outputs.values()) for prepared in cases)
    with closing(connected(port)) as wire:
        for owner in range(owners):
            name = region_of(owner)
            memory[name] = make(name, largest)
            _register(wire, name, memory[name])
        for number, prepared in enumerate(cases):
            if prepared.outputs:
                cases[number] = prepared._replace(reply=send(wire, prepared.payload))
                if (wrong := _differs(prepared, memory)) is not None:
                    raise RuntimeError(f"{prepared.case.name}: {wrong} in shared memory is not what the socket gives")


def check_again(port: int, cases: Sequence[Prepared], memory: Mapping[str, mmap.mmap]) -> list[str]:
    """Send each case once more to the idle server, and describe what differs."""
    with closing(connected(port)) as wire:
        same = {one.case.name: send(wire, one.payload) == one.reply and not _differs(one, memory) for one in cases}
    return [f"{name}: another result after the load" for name, equal in same.items() if not equal]


def check_direct(folder: Path, cases: Sequence[Prepared]) -> list[str]:
    """Compare the answers with those of ONNX Runtime without a server, and describe what differs."""
    models = {prepared.case.model for prepared in cases}
    contracts = {model: load_contract(folder / f"{model}.json") for model in models}
    sessions = {
        model: onnxruntime.InferenceSession(folder / f"{model}.onnx", providers=["CPUExecutionProvider"])
        for model in models
    }
    wrong = []
    for number, prepared in enumerate(tqdm(cases, desc="without a server", file=sys.stderr)):
        case = prepared.case
        arrays = _widened(case, inputs_of(case, number))
        answers = {name: output.raw for name, output in outputs_of(prepared.reply).items()} | prepared.outputs
        expected = sessions[case.model].run(list(answers), check_inputs(contracts[case.model], arrays))
        for (name, raw), array in zip(answers.items(), expected, strict=True):
            if raw != array.tobytes():
                wrong.append(f"{case.name}: {name} is not what ONNX Runtime computes")
        if case.size.slots and not arrays["mask_gt"].any():
            wrong.append(f"{case.name}: has no ground truth, so it proves little")
    return wrong


def _widened(case: Case, arrays: dict[str, Array]) -> dict[str, Array]:
    narrow = NARROW.get(case.form)
    floats = ("feat", "pd_scores")
    return {
        name: array.astype(narrow).astype(np.float32) if narrow is not None and name.startswith(floats) else array
        for name, array in arrays.items()
    }


def outputs_of(reply: bytes) -> dict[str, _Output]:
    """Decode the outputs in a reply by name; those in shared memory are left out."""
    document, end = json.JSONDecoder().raw_decode(reply.decode("latin-1"))
    outputs = {}
    for row in document["outputs"]:
        dtype, parameters = NUMPY_TYPES[row["datatype"]], row.get("parameters", {})
        if "data" in row:
            array = np.array(row["data"], dtype)
        elif "binary_data_size" in parameters:
            array = np.frombuffer(reply[end : end + parameters["binary_data_size"]], dtype)
            end += array.nbytes
        else:
            continue
        outputs[row["name"]] = _Output(array, array.tobytes())
    return outputs


def _differs(prepared: Prepared, memory: Mapping[str, mmap.mmap]) -> str | None:
    """Name the first output whose bytes in shared memory are not the expected ones, or None."""
    values = written(memory[OWNER], [len(raw) for raw in prepared.outputs.values()])
    wrong = (name for (name, raw), value in zip(prepared.outputs.items(), values, strict=True) if raw != value)
    return next(wrong, None)


def _register(wire: Wire, name: str, memory: mmap.mmap) -> None:
    register(wire, name, f"/{PREFIX}{name}", len(memory))
