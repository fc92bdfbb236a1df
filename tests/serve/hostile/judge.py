"""Checks replies: each request is decoded again from the bytes sent and computed by ONNX Runtime without a server."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from tests.serve.hostile.requests import LENGTH, Request
from tests.serve.hostile.wire import Reply
from yolo_assigner.export.contract import Contract, find_contracts
from yolo_assigner.serve.detection.validate import check_inputs
from yolo_assigner.serve.errors import ServeError
from yolo_assigner.serve.inference.runners.onnx_runtime import OnnxRuntimeRunner
from yolo_assigner.serve.wire.dtypes import NUMPY_TYPES, Array
from yolo_assigner.serve.wire.request import decode_request
from yolo_assigner.serve.wire.tensors import SharedTensor

# Never 500; 504 takes a deadline, which no request here sets; 403 is for host names that are not the server's.
REFUSALS = {400, 403, 404, 405, 408, 413, 431, 501, 503}
WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class Judge:
    """Computes the right answers.

    Args:
        artifacts: Folder of the exported models.

    Attributes:
        regions: Content of shared memory by region.
    """

    def __init__(self, artifacts: Path) -> None:
        self.regions: Mapping[str, bytes] = {}
        self._models: dict[str, tuple[Contract, OnnxRuntimeRunner]] = {}
        for path, contract in find_contracts(artifacts):
            runner = OnnxRuntimeRunner(path, contract.default_outputs, threads=1)
            runner.load()
            self._models[contract.name] = contract, runner

    def fault(self, request: Request, reply: Reply) -> str | None:
        """Tell what is wrong with a reply, or None."""
        if reply.status != 200:
            return refusal_fault(reply)
        if not request.path.endswith("/infer"):
            return None if isinstance(_parse_json(reply.body), dict) else "the reply is no object"
        return self._result_fault(request, reply)

    def _result_fault(self, request: Request, reply: Reply) -> str | None:
        contract, runner = self._models[request.path.split("/")[3]]
        headers = {name.lower(): value.strip() for name, value in request.headers}
        body = _decompressed(request.body, headers.get("content-encoding", "").lower())
        length = headers.get(LENGTH.lower())
        try:
            read = decode_request(memoryview(body), None if length is None else int(length), shared_memory=True)
            arrays = {name: self._read_region(tensor) for name, tensor in read.shared.items()}
            inputs = check_inputs(contract, read.inputs | arrays)
        except (ServeError, ValueError, KeyError) as error:
            return f"200 for what is wrong: {error}"
        names = [output.name for output in read.outputs] or list(contract.default_outputs)
        expected = runner.infer(inputs, names)
        given = outputs_of(reply)
        if list(given) != names:
            return f"outputs {list(given)} in place of {names}"
        here = [output.name for output in read.outputs if output.place is None] or names
        differing = [name for name in here if not _equal(given[name], expected[name])]
        return f"wrong {', '.join(differing)}" if differing else None

    def _read_region(self, tensor: SharedTensor) -> Array:
        start = tensor.place.offset
        data = self.regions[tensor.place.region][start : start + tensor.nbytes]
        return np.frombuffer(data, tensor.dtype).reshape(tensor.shape)


def refusal_fault(reply: Reply, allowed: Set[int] = REFUSALS) -> str | None:
    """Tell what is wrong with a refusal, or None: its status must be allowed, its body ``{"error": text}``."""
    if reply.status not in allowed:
        return f"status {reply.status}: {reply.body[:200]!r}"
    try:
        document = _parse_json(reply.body)
    except ValueError:
        return f"no JSON: {reply.body[:200]!r}"
    if list(document) != ["error"] or not isinstance(document["error"], str) or "Traceback" in document["error"]:
        return f"no error in the usual form: {reply.body[:200]!r}"
    return None


def outputs_of(reply: Reply) -> dict[str, Array]:
    """Decode the tensors of a reply by name; outputs in shared memory are empty arrays."""
    end = int(reply.headers.get(LENGTH.lower(), len(reply.body)))
    outputs: dict[str, Array] = {}
    for row in _parse_json(reply.body[:end])["outputs"]:
        dtype = NUMPY_TYPES[row["datatype"]]
        size = row.get("parameters", {}).get("binary_data_size")
        if "shared_memory_region" in row.get("parameters", {}):
            outputs[row["name"]] = np.zeros(0, dtype)
        elif size is None:
            outputs[row["name"]] = np.array(row["data"], dtype).reshape(row["shape"])
        else:
            outputs[row["name"]] = np.frombuffer(reply.body[end : end + size], dtype).reshape(row["shape"])
            end += size
    return outputs


def _equal(given: Array, expected: Array) -> bool:
    """Compare to the bit; JSON writes NaN and the infinities as ``null``, which is read as NaN."""
    if given.dtype.kind == "f":
        expected = np.where(np.isfinite(expected) | (given == expected), expected, np.nan).astype(expected.dtype)
    return np.array_equal(given, expected, equal_nan=given.dtype.kind == "f")


def _decompressed(body: bytes, encoding: str) -> bytes:
    if encoding not in WINDOW_BITS:
        return body
    unpacked = b""
    while body:  # gzip may consist of several members
        stream = zlib.decompressobj(WINDOW_BITS[encoding])
        unpacked += stream.decompress(body)
        body = stream.unused_data
    return unpacked


def _parse_json(text: bytes) -> Mapping[str, Any]:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    document: Mapping[str, Any] = json.loads(text, parse_constant=refuse)
    return document
