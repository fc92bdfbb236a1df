"""What callers ask about regions of shared memory."""

from __future__ import annotations

from serve.compute.service import Call, Verb
from serve.errors import BadRequestError, UnsupportedError
from serve.shared.regions import Regions
from serve.tensors.decode import parse_object
from serve.tensors.encode import EncodedResponse, dump_json
from serve.tensors.place import REMEDY


def run_region_call(regions: Regions | None, call: Call, body: memoryview) -> EncodedResponse:
    """Row 10 of the protocol.

    Args:
        regions: Shared memory; None: switched off.
        call: What is asked, of which region.
        body: What to register, as JSON.

    Raises:
        UnsupportedError: Shared memory is switched off.
        NotFoundError: There is no region of that name.
        BadRequestError: It cannot be registered.
    """
    if regions is None:
        raise UnsupportedError(f"shared memory is switched off; {REMEDY}")
    if call.verb == Verb.REGION_STATUS:
        return EncodedResponse([dump_json(regions.status(call.target))], None)
    if call.verb == Verb.REGION_UNREGISTER:
        regions.unregister(call.target)
    else:
        document = parse_object(body)
        for key in ("key", "byte_size"):
            if key not in document:
                raise BadRequestError(f"{key} is missing; send {{key, offset, byte_size}}")
        regions.register(call.target or "", document["key"], document.get("offset", 0), document["byte_size"])
    return EncodedResponse([b"{}"], None)
