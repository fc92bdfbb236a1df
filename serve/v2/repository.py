"""The protocol on HTTP: rows 7 and 9, the configuration of a model and the list of all; and how one is reloaded."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from yolo_assigner.export.contract import TensorSpec
from yolo_assigner.serve.compute.service import Service
from yolo_assigner.serve.engine.catalogue import VERSION, Catalogue, Known
from yolo_assigner.serve.errors import BadRequestError, UnsupportedError
from yolo_assigner.serve.http.body import BodyReader
from yolo_assigner.serve.http.replies import reply
from yolo_assigner.serve.options import AppOptions
from yolo_assigner.serve.tensors.datatypes import wire_name
from yolo_assigner.serve.tensors.decode import parse_object
from yolo_assigner.serve.v2.routes import Version

BODY_BYTES = 2**16
READY = "READY"


def repository_routes(service: Service, options: AppOptions) -> APIRouter:
    """Configuration and index."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    bodies = BodyReader(BODY_BYTES, pause=options.client_timeout, remedy="send what the protocol asks for")

    @router.get("/models/{name}/versions/{version}/config", summary="Configuration of one version")
    @router.get("/models/{name}/config", summary="Configuration of one model")
    async def config(name: str, version: Version) -> Response:
        return reply(model_config(service.catalogue.find(name, version)))

    @router.post("/repository/index", summary="All models and their states; the body may be empty")
    async def index(request: Request) -> Response:
        body = await bodies.read(request.scope, request.receive)
        ready = parse_object(body).get("ready", False) if len(body) else False
        if not isinstance(ready, bool):
            raise BadRequestError(f"ready is {ready!r}; write true or false")
        entries = index_entries(service.catalogue)
        return reply([entry for entry in entries if entry["state"] == READY or not ready])

    @router.post(
        "/repository/models/{name}/load", summary="Load a model's files anew; the one in use stays if they fail"
    )
    async def load(name: str, request: Request) -> Response:
        body = await bodies.read(request.scope, request.receive)
        if len(body) and parse_object(body).get("parameters"):
            raise UnsupportedError("files and configurations are not taken from requests; put them into --artifacts")
        # It goes on when its caller hangs up: half of it would be of no use.
        await asyncio.shield(asyncio.ensure_future(service.reload(name)))
        return reply(next(entry for entry in index_entries(service.catalogue) if entry["name"] == name))

    return router


def model_config(model: Known) -> dict[str, Any]:
    """A model's configuration in Triton's terms.

    Every axis is among the dims, the first one too, of which callers send as many images as they like.
    """
    contract, limits = model.contract, model.limits
    delay = {"max_queue_delay_microseconds": int(limits.seconds * 1e6)}
    return {
        "name": contract.name,
        "platform": model.platform,
        "max_batch_size": 0,
        "input": [_describe(spec) for spec in contract.inputs],
        "output": [_describe(spec) for spec in contract.outputs],
        **({"dynamic_batching": delay} if model.merges else {}),
    }


def index_entries(catalogue: Catalogue[Known]) -> list[dict[str, Any]]:
    """A line for each model, by name, also for those that cannot be loaded."""
    reasons = {name: "" if model.ready else "it is being loaded" for name, model in catalogue.models.items()}
    reasons |= catalogue.failures
    return [
        {"name": name, "version": VERSION, "state": "UNAVAILABLE" if reason else READY, "reason": reason}
        for name, reason in sorted(reasons.items())
    ]


def _describe(spec: TensorSpec) -> dict[str, Any]:
    dims = [axis if isinstance(axis, int) else -1 for axis in spec.axes]
    return {"name": spec.name, "data_type": f"TYPE_{wire_name(spec.dtype)}", "dims": dims}
