"""From the bytes of an infer request to named arrays. No knowledge of models, none of HTTP."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from serve.datatypes import Array
from serve.errors import BadRequestError, UnsupportedError
from serve.json_tensor import check_depth
from serve.tensor import decode_tensor


class RequestedOutput(NamedTuple):
    """One output that the caller wants.

    Attributes:
        name: The output's name.
        binary: Whether it travels as bytes behind the JSON.
    """

    name: str
    binary: bool


class InferRequest(NamedTuple):
    """A request whose form is right; whether it fits a model is for :mod:`serve.validate` to say.

    Attributes:
        id: The caller's identifier, returned unchanged.
        inputs: Arrays in the type in which they came.
        outputs: In the order asked for; empty when the caller named none.
        binary_default: Whether outputs that were not named travel as bytes.
    """

    id: str | None
    inputs: dict[str, Array]
    outputs: tuple[RequestedOutput, ...]
    binary_default: bool


def decode_request(body: memoryview, header_length: int | None) -> InferRequest:
    """Read a request.

    Args:
        body: JSON, then the raw tensors. The arrays are views of it where alignment allows.
        header_length: Bytes of JSON; None when all of it is.

    Raises:
        BadRequestError: It breaks the protocol; the text says where.
        UnsupportedError: It asks for something that is not implemented.
    """
    if header_length is None:
        header_length = len(body)
    if not 0 <= header_length <= len(body):
        raise BadRequestError(f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} bytes")
    document = _parse(body[:header_length])
    parameters = _object(document.get("parameters", {}), "parameters")
    identifier = document.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise BadRequestError(f"id is {identifier!r}; write a string")
    binary_default = _flag(parameters, "binary_data_output", "parameters", default=False)
    inputs = _inputs(_rows(document, "inputs"), body[header_length:])
    return InferRequest(identifier, inputs, _outputs(_rows(document, "outputs"), binary_default), binary_default)


def _parse(text: memoryview) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the request is not JSON: {error}") from error
    check_depth(text)
    return _object(document, "the request")


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


def _flag(parameters: dict[str, Any], key: str, where: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise BadRequestError(f"{where}: {key} is {value!r}; write true or false")
    return value


def _inputs(rows: list[dict[str, Any]], blob: memoryview) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    offset = 0
    for row in rows:
        name = row["name"]
        if name in arrays:
            raise BadRequestError(f"input {name!r} is given twice")
        arrays[name], used = decode_tensor(row, blob[offset:])
        offset += used
    if offset != len(blob):
        raise BadRequestError(f"{len(blob)} bytes follow the JSON, but the inputs announce {offset}")
    return arrays


def _outputs(rows: list[dict[str, Any]], binary_default: bool) -> tuple[RequestedOutput, ...]:
    outputs: dict[str, RequestedOutput] = {}
    for row in rows:
        name = row["name"]
        if name in outputs:
            raise BadRequestError(f"output {name!r} is asked for twice; name it once")
        parameters = _object(row.get("parameters", {}), f"parameters of output {name!r}")
        for key in ("shared_memory_region", "classification"):
            if key in parameters:
                raise UnsupportedError(f"output {name!r}: {key} is not available; leave it out")
        outputs[name] = RequestedOutput(name, _flag(parameters, "binary_data", name, default=binary_default))
    return tuple(outputs.values())
