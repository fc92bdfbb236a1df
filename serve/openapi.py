"""The OpenAPI page of ``/v1``: schemas of bodies that are read by hand, and examples that can be sent as they are."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from serve.core import Registry
from serve.examples import REDUCE_EXAMPLES, assign_examples, loss_examples
from serve.schemas import AssignRequest, LossRequest, ReduceRequest

REF = "#/components/schemas/{model}"


def document_requests(app: FastAPI, registry: Registry) -> None:
    """Describe the request bodies of ``/v1``.

    Args:
        app: Its OpenAPI document is completed when it is first asked for.
        registry: The models that the examples are made for.
    """
    build = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = build()
            _, definitions = models_json_schema(
                [(model, "validation") for model in (LossRequest, AssignRequest, ReduceRequest)], ref_template=REF
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
            for path in document["paths"].values():
                for route in path.values():
                    route["responses"].pop("422", None)  # the framework announces its own form of error; it is not ours
            _describe(document, "/v1/loss", "LossRequest", loss_examples(registry))
            _describe(document, "/v1/assign", "AssignRequest", assign_examples(registry))
            _describe(document, "/v1/reduce", "ReduceRequest", REDUCE_EXAMPLES)
        assert app.openapi_schema is not None  # noqa: S101 - build() keeps what it made
        return app.openapi_schema

    app.openapi = complete  # type: ignore[method-assign]


def _describe(document: dict[str, Any], path: str, model: str, examples: dict[str, Any]) -> None:
    content: dict[str, Any] = {"schema": {"$ref": REF.format(model=model)}}
    if examples:
        content["examples"] = examples
    errors = {"description": "Refused", "content": {"application/json": {"example": {"error": "what and why"}}}}
    route = document["paths"][path]["post"]
    route["requestBody"] = {"required": True, "content": {"application/json": content}}
    route["responses"].update({"400": errors, "503": errors})
