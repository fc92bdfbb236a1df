"""What callers ask about regions of shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolo_assigner.serve.errors import BadRequestError, UnsupportedError
from yolo_assigner.serve.inference.service import Call, Operation
from yolo_assigner.serve.shared_memory.region import Kind
from yolo_assigner.serve.shared_memory.regions import Regions
from yolo_assigner.serve.wire.request import parse_object
from yolo_assigner.serve.wire.response import EncodedResponse, dump_json
from yolo_assigner.serve.wire.tensors import REMEDY

KINDS = {
    Operation.REGION_STATUS: Kind.SYSTEM,
    Operation.REGION_REGISTER: Kind.SYSTEM,
    Operation.REGION_UNREGISTER: Kind.SYSTEM,
    Operation.CUDA_STATUS: Kind.CUDA,
    Operation.CUDA_REGISTER: Kind.CUDA,
    Operation.CUDA_UNREGISTER: Kind.CUDA,
}
NAMES = {Kind.SYSTEM: "system", Kind.CUDA: "CUDA"}
NEEDED = {Kind.SYSTEM: ("key", "byte_size"), Kind.CUDA: ("raw_handle", "device_id", "byte_size")}
FORMS = {Kind.SYSTEM: "{key, offset, byte_size}", Kind.CUDA: "{raw_handle: {b64}, device_id, byte_size}"}


def run_region_call(regions: Regions | None, call: Call, body: memoryview) -> EncodedResponse:
    """Rows 10 and 11 of the protocol.

    Args:
        regions: Shared memory; None: switched off.
        call: What is asked, of which region.
        body: What to register, as JSON.

    Raises:
        UnsupportedError: Shared memory of this kind is switched off.
        NotFoundError: There is no region of that name.
        BadRequestError: It cannot be registered.
    """
    kind = KINDS[call.operation]
    if regions is None or kind not in regions.kinds:
        if call.operation == Operation.CUDA_STATUS:
            return EncodedResponse([b"[]"], None)
        raise UnsupportedError(f"{NAMES[kind]} shared memory is switched off; {REMEDY}")
    match call.operation:
        case Operation.REGION_STATUS | Operation.CUDA_STATUS:
            return EncodedResponse([dump_json(regions.status(kind, call.target))], None)
        case Operation.REGION_UNREGISTER | Operation.CUDA_UNREGISTER:
            regions.unregister(kind, call.target)
        case _:
            _register(regions, kind, call.target or "", parse_object(body))
    return EncodedResponse([b"{}"], None)


def _register(regions: Regions, kind: Kind, name: str, document: Mapping[str, Any]) -> None:
    for key in NEEDED[kind]:
        if key not in document:
            raise BadRequestError(f"{key} is missing; send {FORMS[kind]}")
    if kind == Kind.SYSTEM:
        regions.register(name, document["key"], document.get("offset", 0), document["byte_size"])
    else:
        regions.register_cuda(name, document["raw_handle"], document["device_id"], document["byte_size"])
