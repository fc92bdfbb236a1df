"""Adding endpoints to the application with their entries in the OpenAPI document, and the two pages.

Bodies are read from the raw stream and replies are written by hand, so FastAPI learns their types from the table.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic.json_schema import models_json_schema

from yolo_assigner.serve.http.replies import JSON_LENGTH
from yolo_assigner.serve.http.routes import DOCS_PATH, INSPECTOR_PATH, ROUTES, STATUSES, VERSIONED, Access, Route
from yolo_assigner.serve.http.schemas_v2 import Error
from yolo_assigner.serve.inference.registry import VERSION, ModelInfo, ModelRegistry
from yolo_assigner.serve.v1.examples import REDUCE_EXAMPLES, assign_examples, explain_examples, loss_examples

Handler = Callable[[Request], Awaitable[Response]]
JSON, BINARY = "application/json", "application/octet-stream"
REF = "#/components/schemas/{model}"
TENSORS = {"schema": {"type": "string", "format": "binary"}}
JSON_LENGTH_HEADER = {
    "name": JSON_LENGTH,
    "in": "header",
    "required": False,
    "description": "Bytes of JSON; binary tensors follow it. Without it all of the body is JSON.",
    "schema": {"type": "integer", "minimum": 0},
}
REGION_EXAMPLES = {"region": {"value": {"key": "/yolo-assigner-0", "offset": 0, "byte_size": 4096}}}
PAGE = Path(__file__).parent / "static" / "docs.html"
INSPECTOR_PAGE = Path(__file__).parent / "static" / "inspector" / "index.html"
# The browser loads nothing from elsewhere and sends nothing there, whatever the scripts try.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


def add_route(app: FastAPI, route: Route, handler: Handler) -> None:
    """Serve an endpoint at all of its paths, and describe it.

    Args:
        app: The application.
        route: The endpoint.
        handler: Answers its requests.
    """
    for path in route.paths:
        if route.head:
            # Added first, it answers both methods; the entry below only describes GET: in OpenAPI every entry has a
            # reply with a body, and HEAD has none.
            app.add_api_route(path, handler, methods=["GET", "HEAD"], include_in_schema=False)
        app.add_api_route(
            path,
            handler,
            methods=[route.method],
            name=route.name,
            tags=[route.tag],
            summary=f"{route.summary}, by version" if VERSIONED in path else route.summary,
            description=route.description,
            response_model=route.reply,
            response_description="Done",
            responses=_responses(route),
            openapi_extra=_request(route, path),
            include_in_schema=route.reply is not None,
        )


def _responses(route: Route) -> dict[int | str, dict[str, Any]]:
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Error, "description": STATUSES[status].meaning} for status in sorted(route.refusals)
    }
    return {200: {"content": {BINARY: TENSORS}}, **refusals} if route.binary else refusals


def _request(route: Route, path: str) -> dict[str, Any]:
    """Parameters, body and key of a request."""
    names = re.findall(r"{(\w+)}", path)
    schema = {"type": "string", "minLength": 1}
    parameters = [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]
    entry: dict[str, Any] = {"parameters": [*parameters, JSON_LENGTH_HEADER] if route.binary else parameters}
    if route.access is not Access.OPEN:
        entry["security"] = [{}, {"key": []}]  # the operator decides whether a key is needed
    if route.request is not None:
        body = {JSON: {"schema": {"$ref": REF.format(model=route.request.__name__)}}}
        content = body | {BINARY: TENSORS} if route.binary else body
        entry["requestBody"] = {"required": route.request_required, "content": content}
    return entry


def complete_document(app: FastAPI, registry: ModelRegistry[ModelInfo]) -> None:
    """Add to the OpenAPI document what FastAPI does not know: types of requests, the key, and examples.

    Args:
        app: Its document is completed when it is first asked for, and again after the models have changed.
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
    registry.watch(forget)


def _complete(document: dict[str, Any], registry: ModelRegistry[ModelInfo]) -> None:
    requests = dict.fromkeys(route.request for route in ROUTES if route.request is not None)
    _, definitions = models_json_schema([(model, "validation") for model in requests], ref_template=REF)
    components = document["components"]
    components["schemas"] |= definitions["$defs"]
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    paths = document["paths"]
    for path, operations in paths.items():
        for entry in operations.values():
            _add_parameter_examples(path, entry["parameters"], registry)
    for path, examples in _body_examples(registry).items():
        if examples:
            paths[path]["post"]["requestBody"]["content"][JSON]["examples"] = examples


def _add_parameter_examples(path: str, parameters: list[dict[str, Any]], registry: ModelRegistry[ModelInfo]) -> None:
    values = {"version": [VERSION], "name": list(registry.models) if "/models/" in path else []}
    for parameter in parameters:
        if examples := values.get(parameter["name"]):
            parameter["examples"] = {value: {"value": value} for value in examples}


def _body_examples(registry: ModelRegistry[ModelInfo]) -> dict[str, dict[str, Any]]:
    """Requests by path that can be sent as they are."""
    return {
        "/v1/loss": loss_examples(registry),
        "/v1/assign": assign_examples(registry),
        "/v1/explain": explain_examples(registry),
        "/v1/reduce": REDUCE_EXAMPLES,
        "/v2/systemsharedmemory/region/{name}/register": REGION_EXAMPLES,
    }


def add_docs_page(app: FastAPI) -> None:
    """Serve the page that shows the OpenAPI document, and the files that it loads.

    Args:
        app: It must have no page of its own: ``docs_url=None, redoc_url=None``.
    """

    @app.get(DOCS_PATH, include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE, headers=HEADERS)

    files = StaticFiles(packages=[("fastapi_offline", "static"), ("yolo_assigner.serve.http", "static")])
    app.mount(DOCS_PATH, files)


def add_inspector(app: FastAPI) -> None:
    """Serve the page that shows which anchors learn which ground truth, and the files that it loads.

    Args:
        app: The application.
    """

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(INSPECTOR_PAGE, headers=HEADERS)

    app.mount(INSPECTOR_PATH, StaticFiles(packages=[("yolo_assigner.serve.http", "static/inspector")]))
