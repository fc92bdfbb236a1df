"""What each route takes, gives and refuses, for the OpenAPI page."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter

from yolo_assigner.serve.v1.schemas import (
    AssignReply,
    AssignRequest,
    LossReply,
    LossRequest,
    ReduceReply,
    ReduceRequest,
)
from yolo_assigner.serve.v2.schemas import (
    CudaRegion,
    CudaRegionRequest,
    IndexRequest,
    InferReply,
    InferRequest,
    Live,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    ModelState,
    Nothing,
    Ready,
    Region,
    RegionRequest,
    ServerMetadata,
    Statistics,
)

REASONS = {
    400: "It breaks the protocol, or does not fit the model",
    401: "No key",
    403: "A key that is not good for this, a Host that is not the server's, or a web page that may not call",
    404: "No such model, version, region or path",
    405: "Another verb is wanted",
    408: "It came too slowly",
    413: "It, or what it asks for, is over a limit of the server",
    429: "Too many requests with wrong keys came from the same address",
    500: "The engine failed",
    501: "Something that this server does not do, or that is switched off",
    503: "A model cannot be loaded or is not loaded yet, too much is under way, or the server is about to stop",
    504: "Its time was over before its model got to it",
}
KEYS = (401, 403, 429)
NAMED = (*KEYS, 404, 405)  # whatever stands in a path may lead elsewhere
BODY = (400, 408, 413, 501)
COMPUTED = (*KEYS, *BODY, 404, 500, 503, 504)
JSON, BINARY = "application/json", "application/octet-stream"


class Route(NamedTuple):
    """One route, for all versions of a model.

    Attributes:
        reply: The type of its JSON.
        refusals: Statuses besides 200.
        request: The type of the JSON that it takes; None: nothing.
        required: There must be a body.
        binary: Tensors may stand behind the JSON, both ways.
    """

    reply: Any
    refusals: tuple[int, ...]
    request: Any = None
    required: bool = True
    binary: bool = False


def _regions(kind: str, reply: Any, request: Any) -> dict[str, Route]:
    """Of one kind of shared memory."""
    path = f"/v2/{kind}sharedmemory"
    return {
        f"get {path}/status": Route(reply, (*KEYS, 501, 503)),
        f"get {path}/region/{{name}}/status": Route(reply, (*NAMED, 501, 503)),
        f"post {path}/region/{{name}}/register": Route(Nothing, (*NAMED, *BODY, 503), request),
        f"post {path}/region/{{name}}/unregister": Route(Nothing, (*NAMED, 501, 503)),
        f"post {path}/unregister": Route(Nothing, (*KEYS, 501, 503)),
    }


ROUTES = {
    "get /v2/health/live": Route(Live, (403, 503)),
    "get /v2/health/ready": Route(Ready, (403, 503)),
    "get /v2": Route(ServerMetadata, KEYS),
    "get /v2/models/{name}/ready": Route(ModelReady, (*NAMED, 503)),
    "get /v2/models/stats": Route(Statistics, KEYS),
    "get /v2/models/{name}/stats": Route(Statistics, (*NAMED, 503)),
    "get /v2/models/{name}": Route(ModelMetadata, (*NAMED, 503)),
    "get /v2/models/{name}/config": Route(ModelConfig, (*NAMED, 503)),
    "post /v2/models/{name}/infer": Route(InferReply, (*COMPUTED, 405), InferRequest, binary=True),
    "post /v2/repository/index": Route(list[ModelState], (*KEYS, *BODY), IndexRequest, required=False),
    "post /v2/repository/models/{name}/load": Route(ModelState, (*NAMED, *BODY, 500, 503), Nothing, required=False),
    **_regions("system", list[Region], RegionRequest),
    **_regions("cuda", list[CudaRegion], CudaRegionRequest),
    "post /v1/loss": Route(LossReply, COMPUTED, LossRequest),
    "post /v1/assign": Route(AssignReply, COMPUTED, AssignRequest),
    "post /v1/reduce": Route(ReduceReply, COMPUTED, ReduceRequest),
}


def schemas_of(routes: dict[str, Route], template: str) -> tuple[dict[Any, Any], dict[str, Any]]:
    """JSON schemas of all requests and replies.

    Args:
        routes: Whose.
        template: Of references, with ``{model}``.

    Returns:
        By type a schema, and by name what they refer to.
    """
    types = [kind for route in routes.values() for kind in (route.reply, route.request) if kind is not None]
    mode: Literal["validation"] = "validation"
    inputs = [(kind, mode, TypeAdapter(kind)) for kind in dict.fromkeys(types)]
    found, definitions = TypeAdapter.json_schemas(inputs, ref_template=template)
    return {key: schema for (key, _), schema in found.items()}, definitions.get("$defs", {})


def described(route: Route, schemas: dict[Any, Any], refusal: dict[str, Any]) -> dict[str, Any]:
    """The parts of a route's entry that are said here: ``responses``, and ``requestBody`` where it takes one."""
    content: dict[str, Any] = {JSON: {"schema": schemas[route.reply]}}
    if route.binary:
        content[BINARY] = {"schema": {"type": "string", "format": "binary"}}
    refusals = {
        str(status): {"description": REASONS[status], "content": {JSON: {"schema": refusal}}}
        for status in sorted(route.refusals)
    }
    entry: dict[str, Any] = {"responses": {"200": {"description": "Done", "content": content}, **refusals}}
    if route.request is not None:
        taken: dict[str, Any] = {JSON: {"schema": schemas[route.request]}}
        if route.binary:
            taken[BINARY] = {"schema": {"type": "string", "format": "binary"}}
        entry["requestBody"] = {"required": route.required, "content": taken}
    return entry
