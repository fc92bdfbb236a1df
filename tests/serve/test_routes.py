"""The table of endpoints is what the application serves, and what guards and metrics judge requests by."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.routing import Mount, Route

from tests.serve.test_app import Started, SumRunner
from yolo_assigner.serve.http.routes import (
    DOCS,
    DOCS_PATH,
    INSPECTOR,
    INSPECTOR_PATH,
    ROUTES,
    STATUSES,
    Access,
    route_of,
)

PARAMETERS = {"name": "loss", "version": "1", "file": "docs.js"}


def served() -> list[tuple[str, set[str]]]:
    """Paths and methods of the application, but for the OpenAPI document and the files of the pages."""
    found: list[tuple[str, set[str]]] = []
    for route in Started(SumRunner()).app.routes:
        if isinstance(route, Route) and route.path != "/openapi.json":
            found.append((route.path, route.methods or set()))
        else:
            assert isinstance(route, Route | Mount)
            assert route.path in ("/openapi.json", DOCS_PATH, INSPECTOR_PATH)
    return found


def filled(path: str) -> str:
    """A path with values for its parameters."""
    return re.sub(r"{(\w+)(:path)?}", lambda match: PARAMETERS[match[1]], path)


def test_the_application_serves_the_table_and_nothing_else() -> None:
    listed = {path for route in (*ROUTES, DOCS[0], INSPECTOR[0]) for path in route.paths}
    assert {path for path, _ in served()} == listed
    for route in ROUTES:
        for path in route.paths:
            methods: set[str] = set().union(*(methods for other, methods in served() if other == path))
            assert route.method in methods
            assert ("HEAD" in methods) == route.head


@pytest.mark.parametrize("route", [*ROUTES, *DOCS], ids=lambda route: f"{route.method} {route.path}")
def test_a_path_is_judged_by_the_endpoint_that_answers_it(route: Any) -> None:
    for path in route.paths:
        found = route_of(filled(path))
        assert found is not None
        assert (found.path, found.access, found.metric) == (route.path, route.access, route.metric)
        assert route_of(f"{filled(path)}/") is None or route_of(f"{filled(path)}/") in DOCS
    assert set(route.refusals) <= STATUSES.keys()


def test_who_may_call() -> None:
    changing = ("register", "/load", "/unload", "/logging", "/v2/trace")
    for route in ROUTES:
        changes = any(word in route.path for word in changing)
        assert (route.access is Access.ADMINISTRATION) == (changes or "sharedmemory" in route.path), route.path
        assert (route.access is Access.OPEN) == route.path.startswith("/v2/health/"), route.path
    assert route_of("/v2/nothing") is route_of("/docsx") is route_of("/openapi.json") is None
