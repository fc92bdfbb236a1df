"""The OpenAPI page: what is read and written by hand, and examples that can be sent as they are."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter

from yolo_assigner.serve.engine.catalogue import VERSION, Catalogue, Known
from yolo_assigner.serve.openapi_routes import JSON, ROUTES, described, schemas_of
from yolo_assigner.serve.v1.examples import REDUCE_EXAMPLES, assign_examples, loss_examples
from yolo_assigner.serve.v2.schemas import Error

REF = "#/components/schemas/{model}"
VERSIONED = "/versions/{version}"
JSON_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "description": "Bytes of JSON; binary tensors follow it. Without it all of the body is JSON.",
    "schema": {"type": "integer", "minimum": 0},
}
CUDA_EXAMPLES = {"region": {"value": {"raw_handle": {"b64": "A" * 86 + "=="}, "device_id": 0, "byte_size": 4096}}}
REGION_EXAMPLES = {"region": {"value": {"key": "/yolo-assigner-0", "offset": 0, "byte_size": 4096}}}


def document_requests(app: FastAPI, catalogue: Catalogue[Known]) -> None:
    """Describe all routes.

    Args:
        app: Its OpenAPI document is completed when it is first asked for.
        catalogue: The models that the examples are made for.
    """
    build = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(build(), catalogue)
        assert app.openapi_schema is not None  # noqa: S101 - build() keeps what it made
        return app.openapi_schema

    def forget(_: Known) -> None:
        app.openapi_schema = None

    app.openapi = complete  # type: ignore[method-assign]
    catalogue.watch(forget)  # examples are made for the models of now


def _complete(document: dict[str, Any], catalogue: Catalogue[Known]) -> None:
    schemas, definitions = schemas_of(ROUTES, REF)
    parts = document.setdefault("components", {})
    parts["schemas"] = {**definitions, "Error": TypeAdapter(Error).json_schema(ref_template=REF)}
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    refusal = {"$ref": REF.format(model="Error")}
    models = {name: {"value": name} for name in catalogue.models}
    for path, verbs in document["paths"].items():
        for verb, entry in verbs.items():
            route = ROUTES[f"{verb} {path.replace(VERSIONED, '')}"]
            entry.update(described(route, schemas, refusal))
            entry["parameters"] = [_parameter(name, path, models) for name in re.findall(r"{(\w+)}", path)]
            if route.binary:
                entry["parameters"].append(JSON_LENGTH)
            if not path.startswith("/v2/health"):
                entry["security"] = [{}, {"key": []}]  # whether one is needed is for the operator to say
    _add_examples(document["paths"], catalogue)


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


def _add_examples(paths: dict[str, Any], catalogue: Catalogue[Known]) -> None:
    examples = {
        "/v1/loss": loss_examples(catalogue),
        "/v1/assign": assign_examples(catalogue),
        "/v1/reduce": REDUCE_EXAMPLES,
        "/v2/systemsharedmemory/region/{name}/register": REGION_EXAMPLES,
        "/v2/cudasharedmemory/region/{name}/register": CUDA_EXAMPLES,
    }
    for path, values in examples.items():
        if values:
            paths[path]["post"]["requestBody"]["content"][JSON]["examples"] = values
