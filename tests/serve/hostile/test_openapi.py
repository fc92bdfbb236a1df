"""The OpenAPI document against a real server: every answer, to valid and invalid requests, is one that it describes."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy, one_of
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi import checks

from tests.serve.conftest import Live
from yolo_assigner.serve.http.routes import ROUTES

load_all_checks()
Case = schemathesis.Case[Any]
Operation = schemathesis.APIOperation[Any, Any, Any, Any]
EXAMPLES = 12
HEALTH = list(HealthCheck)
CHECKS = [  # the document describes 500 too; the test below forbids it
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]


@pytest.fixture(scope="module")
def document(live: Live) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"http://{live.url}/openapi.json")


DOCUMENTED = [f"{route.method} {route.path}" for route in ROUTES if route.reply is not None]


@pytest.mark.parametrize("route", [*DOCUMENTED, "GET /v2/models/{name}/versions/{version}"])
def test_the_document_is_true(document: schemathesis.BaseSchema, route: str) -> None:
    verb, path = route.split()
    operation = document[path][verb]

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=HEALTH)
    @given(case=strategy_of(operation))
    def check(case: Case) -> None:
        response = case.call_and_validate(checks=CHECKS, timeout=120)
        assert response.status_code != 500
        if response.status_code >= 400:
            assert list(response.json()) == ["error"]

    check()


def strategy_of(operation: Operation) -> SearchStrategy[Case]:
    """Requests that match the document, some with the name of a loaded model, and requests that do not match."""
    good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not (operation.path_parameters or operation.body):
        return good
    return one_of(good, good.map(_to_a_model), operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))


def _to_a_model(case: Case) -> Case:
    if "name" in case.path_parameters:
        case.path_parameters["name"] = "loss"
    if "version" in case.path_parameters:
        case.path_parameters["version"] = "1"
    return case


def test_every_route_is_described(document: schemathesis.BaseSchema) -> None:
    for path, verbs in document.raw_schema["paths"].items():
        for verb, entry in verbs.items():
            described = entry["responses"]
            assert described["200"]["content"]["application/json"]["schema"], (path, verb)
            refusals = {status for status in described if status != "200"}
            for status in refusals:
                schema = described[status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Error"}, (path, verb, status)
            assert path.startswith("/v2/health") or {"401", "403"} <= refusals
