"""The OpenAPI page: what is read and written by hand, and examples that can be sent as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import TypeAdapter

from yolo_assigner.serve.http.auth import DOCS
from yolo_assigner.serve.http.schemas_v2 import (
    Error,
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
from yolo_assigner.serve.inference.registry import VERSION, ModelInfo, ModelRegistry
from yolo_assigner.serve.v1.examples import REDUCE_EXAMPLES, assign_examples, loss_examples
from yolo_assigner.serve.v1.schemas import (
    AssignReply,
    AssignRequest,
    LossReply,
    LossRequest,
    ReduceReply,
    ReduceRequest,
)

REF = "#/components/schemas/{model}"
VERSIONED = "/versions/{version}"
JSON_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "description": "Bytes of JSON; binary tensors follow it. Without it all of the body is JSON.",
    "schema": {"type": "integer", "minimum": 0},
}
REGION_EXAMPLES = {"region": {"value": {"key": "/yolo-assigner-0", "offset": 0, "byte_size": 4096}}}


def document_requests(app: FastAPI, registry: ModelRegistry[ModelInfo]) -> None:
    """Describe all routes.

    Args:
        app: Its OpenAPI document is completed when it is first asked for.
        registry: The models that the examples are made for.
    """
    build = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(build(), registry)
        assert app.openapi_schema is not None  # noqa: S101 - build() keeps what it made
        return app.openapi_schema

    def forget(_: ModelInfo) -> None:
        app.openapi_schema = None

    app.openapi = complete  # type: ignore[method-assign]
    registry.watch(forget)  # examples are made for the models of now


def _complete(document: dict[str, Any], registry: ModelRegistry[ModelInfo]) -> None:
    schemas, definitions = schemas_of(ROUTES, REF)
    parts = document.setdefault("components", {})
    parts["schemas"] = {**definitions, "Error": TypeAdapter(Error).json_schema(ref_template=REF)}
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    refusal = {"$ref": REF.format(model="Error")}
    models = {name: {"value": name} for name in registry.models}
    for path, verbs in document["paths"].items():
        for verb, entry in verbs.items():
            route = ROUTES[f"{verb} {path.replace(VERSIONED, '')}"]
            entry.update(described(route, schemas, refusal))
            entry["parameters"] = [_parameter(name, path, models) for name in re.findall(r"{(\w+)}", path)]
            if route.binary:
                entry["parameters"].append(JSON_LENGTH)
            if not path.startswith("/v2/health"):
                entry["security"] = [{}, {"key": []}]  # whether one is needed is for the operator to say
    _add_examples(document["paths"], registry)


def _parameter(name: str, path: str, models: dict[str, Any]) -> dict[str, Any]:
    examples = {VERSION: {"value": VERSION}} if name == "version" else models if "/models/" in path else {}
    schema = {"type": "string", "minLength": 1}
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": schema,
        **({"examples": examples} if examples else {}),
    }


def _add_examples(paths: dict[str, Any], registry: ModelRegistry[ModelInfo]) -> None:
    examples = {
        "/v1/loss": loss_examples(registry),
        "/v1/assign": assign_examples(registry),
        "/v1/reduce": REDUCE_EXAMPLES,
        "/v2/systemsharedmemory/region/{name}/register": REGION_EXAMPLES,
    }
    for path, values in examples.items():
        if values:
            paths[path]["post"]["requestBody"]["content"][JSON]["examples"] = values


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


REGIONS = "/v2/systemsharedmemory"
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
    f"get {REGIONS}/status": Route(list[Region], (*KEYS, 501, 503)),
    f"get {REGIONS}/region/{{name}}/status": Route(list[Region], (*NAMED, 501, 503)),
    f"post {REGIONS}/region/{{name}}/register": Route(Nothing, (*NAMED, *BODY, 503), RegionRequest),
    f"post {REGIONS}/region/{{name}}/unregister": Route(Nothing, (*NAMED, 501, 503)),
    f"post {REGIONS}/unregister": Route(Nothing, (*KEYS, 501, 503)),
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


PAGE = Path(__file__).parent / "static" / "docs.html"
# The browser loads nothing from elsewhere and sends nothing there, whatever the scripts try.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


def add_docs_page(app: FastAPI) -> None:
    """Serve the page and what it loads.

    Args:
        app: It must have no page of its own: ``docs_url=None, redoc_url=None``.
    """

    @app.get(DOCS, include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE, headers=HEADERS)

    app.mount(DOCS, StaticFiles(packages=[("fastapi_offline", "static"), ("yolo_assigner.serve.http", "static")]))
