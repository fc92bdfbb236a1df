"""The page at ``/docs``: Swagger UI on the OpenAPI document. All of it comes from this server."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from yolo_assigner.serve.http.keys import DOCS

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
