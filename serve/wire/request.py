"""From the bytes of an infer request to named arrays, whatever the model."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from yolo_assigner.serve.errors import BadRequestError, UnsupportedError
from yolo_assigner.serve.wire.dtypes import Array
from yolo_assigner.serve.wire.json import check_depth, check_parts
from yolo_assigner.serve.wire.tensors import Place, SharedTensor, decode_tensor, read_place

MISSING_LENGTH = (
    "; if binary tensors follow the JSON, send its number of bytes as the header Inference-Header-Content-Length"
)


class RequestedOutput(NamedTuple):
    """One output that the caller requests.

    Attributes:
        name: The output's name.
        binary: Whether it is sent as bytes after the JSON.
        place: Where in shared memory it is written; None: it is sent.
    """

    name: str
    binary: bool
    place: Place | None = None


class InferRequest(NamedTuple):
    """A well-formed request; :mod:`yolo_assigner.serve.detection.validate` checks that it fits a model.

    Attributes:
        id: The caller's identifier, returned unchanged.
        inputs: Arrays in the types in which they were sent.
        shared: The inputs that are still in shared memory.
        outputs: In the requested order; empty when the caller named none.
        binary_default: Whether outputs are sent as bytes when the caller named none.
        timeout: Microseconds that the request may wait for its model; None: it names none.
        min_box_side: JSON of the hyper-parameter for which anchors were left out; None: the request names none.
    """

    id: str | None
    inputs: dict[str, Array]
    shared: dict[str, SharedTensor]
    outputs: tuple[RequestedOutput, ...]
    binary_default: bool
    timeout: int | None
    min_box_side: str | None

    @property
    def shared_bytes(self) -> int:
        """Bytes of the inputs that are still in shared memory."""
        return sum(tensor.nbytes for tensor in self.shared.values())


def decode_request(body: memoryview, header_length: int | None, *, shared_memory: bool = False) -> InferRequest:
    """Decode an infer request.

    Args:
        body: JSON, then the raw tensors. The arrays are views of it where alignment allows.
        header_length: Bytes of JSON; None when the whole body is JSON.
        shared_memory: Whether the request may name places in shared memory, which are not read yet.

    Raises:
        BadRequestError: The request breaks the protocol; the text says where.
        UnsupportedError: The request asks for something that is not implemented.
    """
    remedy = MISSING_LENGTH if header_length is None and body[:1].tobytes() == b"{" else ""
    if header_length is None:
        header_length = len(body)
    if not 0 <= header_length <= len(body):
        raise BadRequestError(f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} bytes")
    document = parse_object(body[:header_length], remedy)
    parameters = _object(document.get("parameters", {}), "parameters")
    identifier = document.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise BadRequestError(f"id is {identifier!r}; write a string")
    binary_default = _flag(parameters, "binary_data_output", "parameters", default=False)
    tensors = _inputs(_rows(document, "inputs"), body[header_length:], shared_memory=shared_memory)
    shared = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, SharedTensor)}
    inputs = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, SharedTensor)}
    outputs = _outputs(_rows(document, "outputs"), binary_default, shared_memory=shared_memory)
    timeout, side = _timeout(parameters), _min_box_side(parameters)
    return InferRequest(identifier, inputs, shared, outputs, binary_default, timeout, side)


def parse_object(text: memoryview, remedy: str = "") -> dict[str, Any]:
    """Parse a request's JSON, which must be an object.

    Args:
        text: The JSON and nothing else.
        remedy: Appended to the error for text that is not JSON.

    Returns:
        The object without keys whose value is null, which the protocol treats as absent.

    Raises:
        BadRequestError: The text is not a JSON object, is nested too deep or has too many parts.
    """
    raw = bytes(text)
    check_parts(raw)
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the request is not JSON: {error}{remedy}") from error
    check_depth(raw)
    return _object(_without_nulls(document), "the request")


def _without_nulls(value: Any) -> Any:
    """Drop null keys from objects and from lists of objects; in lists of values, null stands for NaN and stays."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_without_nulls(item) for item in value]
    return value


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequestError(f"{where} must be a JSON object")
    return value


def _rows(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    rows = document.get(key, [])
    if not isinstance(rows, list):
        raise BadRequestError(f"{key} must be a list of objects")
    for index, row in enumerate(rows):
        if not isinstance(_object(row, f"{key}[{index}]").get("name"), str):
            raise BadRequestError(f"{key}[{index}] has no name; write a string")
    return rows


def _timeout(parameters: dict[str, Any]) -> int | None:
    """Read the timeout in microseconds; the protocol's 0 means no limit, None."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or value < 0:
        raise BadRequestError(f"parameters: timeout is {value!r}; write a whole number of microseconds")
    return value or None


def _min_box_side(parameters: dict[str, Any]) -> str | None:
    value = parameters.get("min_box_side")
    if value is not None and not isinstance(value, str):
        raise BadRequestError(f"parameters: min_box_side is {value!r}; write the string of the model's config")
    return value


def _flag(parameters: dict[str, Any], key: str, where: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise BadRequestError(f"{where}: {key} is {value!r}; write true or false")
    return value


def _inputs(rows: list[dict[str, Any]], blob: memoryview, *, shared_memory: bool) -> dict[str, Array | SharedTensor]:
    tensors: dict[str, Array | SharedTensor] = {}
    offset = 0
    for row in rows:
        name = row["name"]
        if name in tensors:
            raise BadRequestError(f"input {name!r} is given twice")
        tensors[name], used = decode_tensor(row, blob[offset:], shared_memory=shared_memory)
        offset += used
    if offset != len(blob):
        raise BadRequestError(f"{len(blob)} bytes follow the JSON, but the inputs announce {offset}")
    return tensors


def _outputs(rows: list[dict[str, Any]], binary_default: bool, *, shared_memory: bool) -> tuple[RequestedOutput, ...]:
    outputs: dict[str, RequestedOutput] = {}
    for row in rows:
        name = row["name"]
        if name in outputs:
            raise BadRequestError(f"output {name!r} is asked for twice; name it once")
        parameters = _object(row.get("parameters", {}), f"parameters of output {name!r}")
        if "classification" in parameters:
            raise UnsupportedError(f"output {name!r}: classification is not available; leave it out")
        place = read_place(parameters, f"output {name!r}", allowed=shared_memory)
        binary = _flag(parameters, "binary_data", name, default=binary_default)
        outputs[name] = RequestedOutput(name, binary and place is None, place)
    return tuple(outputs.values())
