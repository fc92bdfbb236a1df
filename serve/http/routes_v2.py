"""Handlers of the Open Inference Protocol v2, by the names of their routes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import Request, Response

from yolo_assigner.export.contract import TensorSpec
from yolo_assigner.serve.errors import BadRequestError, BusyError, UnsupportedError
from yolo_assigner.serve.http.admission import Admission
from yolo_assigner.serve.http.body import BodyReader
from yolo_assigner.serve.http.disconnect import unless_disconnected
from yolo_assigner.serve.http.headers import header_number
from yolo_assigner.serve.http.openapi import Handler
from yolo_assigner.serve.http.replies import JSON_LENGTH, ReplyInParts, reply
from yolo_assigner.serve.inference.registry import VERSION, ModelInfo, ModelRegistry, check_loaded
from yolo_assigner.serve.inference.service import Operation, Service, new_call
from yolo_assigner.serve.settings import Settings
from yolo_assigner.serve.versions import CLIENT_HEADER, check_peer
from yolo_assigner.serve.wire.dtypes import wire_name
from yolo_assigner.serve.wire.request import parse_object
from yolo_assigner.serve.wire.response import dump_json
from yolo_loss import __version__

EXTENSIONS = ("binary_tensor_data",)
SMALL_BODY = 2**16  # bytes of a body without tensors
READY = "READY"
NOTHING = memoryview(b"")


def v2_handlers(service: Service, bodies: BodyReader, settings: Settings, admission: Admission) -> dict[str, Handler]:
    """All handlers.

    Args:
        service: Knows and runs the models.
        bodies: Reads the requests with tensors.
        settings: Time limits are read.
        admission: Says whether the server is stopping.
    """
    small_bodies = BodyReader(
        SMALL_BODY, client_timeout=settings.client_timeout or None, remedy="send what the protocol asks for"
    )
    return {
        **_health_handlers(service, admission),
        **_model_handlers(service.registry),
        **_repository_handlers(service, small_bodies),
        **_region_handlers(service, small_bodies),
        "infer": _infer_handler(service, bodies, settings),
    }


def refusing(remedy: str) -> Handler:
    """The handler of a part of the protocol that this server does not implement."""

    async def refuse(_: Request) -> Response:
        raise UnsupportedError(remedy)

    return refuse


def _health_handlers(service: Service, admission: Admission) -> dict[str, Handler]:
    async def live(_: Request) -> Response:
        service.check_alive()
        return reply({"live": True})

    async def ready(_: Request) -> Response:
        if admission.closing:
            raise BusyError("this server is about to stop; send requests to another one")
        service.check_ready()
        return reply({"ready": True})

    async def server(_: Request) -> Response:
        return reply(server_metadata(service.extensions))

    return {"live": live, "ready": ready, "server": server}


def _model_handlers(registry: ModelRegistry[ModelInfo]) -> dict[str, Handler]:
    async def model_ready(request: Request) -> Response:
        name = _find(registry, request).contract.name
        check_loaded(registry, name)
        return reply({"name": name, "ready": True})

    async def stats(request: Request) -> Response:
        models = [_find(registry, request)] if "name" in request.path_params else registry.models.values()
        return reply({"model_stats": [model.stats.as_json(model.contract.name, VERSION) for model in models]})

    async def model(request: Request) -> Response:
        return reply(model_metadata(_find(registry, request)))

    async def config(request: Request) -> Response:
        return reply(model_config(_find(registry, request)))

    return {"model_ready": model_ready, "stats": stats, "model": model, "config": config}


def _infer_handler(service: Service, bodies: BodyReader, settings: Settings) -> Handler:
    async def infer(request: Request) -> Response:
        check_peer(CLIENT_HEADER, request.headers.get(CLIENT_HEADER), BadRequestError)
        name = _find(service.registry, request).contract.name
        service.check(name)
        json_length = header_number(request.headers, JSON_LENGTH)
        body = await bodies.read(request.scope, request.receive, json_length)
        call = new_call(Operation.INFER, name, json_length, settings.request_timeout or None)
        return ReplyInParts(await unless_disconnected(request.receive, service.run(call, body)))

    return infer


def _repository_handlers(service: Service, bodies: BodyReader) -> dict[str, Handler]:
    async def index(request: Request) -> Response:
        body = await bodies.read(request.scope, request.receive)
        ready = parse_object(body).get("ready", False) if len(body) else False
        if not isinstance(ready, bool):
            raise BadRequestError(f"ready is {ready!r}; write true or false")
        entries = index_entries(service.registry)
        return reply([entry for entry in entries if entry["state"] == READY or not ready])

    async def load(request: Request) -> Response:
        name = request.path_params["name"]
        body = await bodies.read(request.scope, request.receive)
        if len(body) and parse_object(body).get("parameters"):
            raise UnsupportedError("files and configurations are not taken from requests; put them into --artifacts")
        # Not cancelled when the client disconnects: a load that stops half-way helps nobody.
        await asyncio.shield(asyncio.ensure_future(service.reload(name)))
        return reply(next(entry for entry in index_entries(service.registry) if entry["name"] == name))

    return {"index": index, "load": load}


def _region_handlers(service: Service, bodies: BodyReader) -> dict[str, Handler]:
    async def answer(operation: Operation, request: Request, body: memoryview = NOTHING) -> Response:
        return ReplyInParts(await service.run(new_call(operation, request.path_params.get("name")), body))

    async def status(request: Request) -> Response:
        return await answer(Operation.REGION_STATUS, request)

    async def register(request: Request) -> Response:
        return await answer(Operation.REGION_REGISTER, request, await bodies.read(request.scope, request.receive))

    async def unregister(request: Request) -> Response:
        return await answer(Operation.REGION_UNREGISTER, request)

    async def no_regions(_: Request) -> Response:
        return reply([])

    async def nothing(_: Request) -> Response:
        return reply({})

    return {
        "region_status": status,
        "region_register": register,
        "region_unregister": unregister,
        "no_regions": no_regions,
        "nothing": nothing,
    }


def _find(registry: ModelRegistry[ModelInfo], request: Request) -> ModelInfo:
    """The model that a path names, and whose version it has if it names one.

    Raises:
        NotFoundError: There is no such model or version.
        ModelFailedError: It could not be loaded.
    """
    return registry.find(request.path_params["name"], request.path_params.get("version"))


def server_metadata(extensions: Sequence[str] = ()) -> dict[str, Any]:
    """The reply to ``GET /v2``.

    Args:
        extensions: Those that are switched on, besides binary tensors.
    """
    return {"name": "yolo-assigner", "version": __version__, "extensions": [*EXTENSIONS, *extensions]}


def model_metadata(model: ModelInfo) -> dict[str, Any]:
    """The reply to ``GET /v2/models/NAME``.

    Outputs that are only sent when requested have ``"parameters": {"default": false}``.
    """
    contract = model.contract
    outputs = [_metadata(spec) | {"parameters": {"default": not spec.heavy}} for spec in contract.outputs]
    return {
        "name": contract.name,
        "versions": [VERSION],
        "platform": model.platform,
        "inputs": [_metadata(spec) for spec in contract.inputs],
        "outputs": outputs,
    }


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": wire_name(spec.dtype), "shape": _shape(spec)}


def _shape(spec: TensorSpec) -> list[int]:
    """Sizes of all axes; -1 for an axis of any size."""
    return [axis if isinstance(axis, int) else -1 for axis in spec.axes]


def model_config(model: ModelInfo) -> dict[str, Any]:
    """A model's configuration in Triton's terms.

    ``max_batch_size`` is 0, so that ``dims`` has every axis, also the first one, which callers may make as long as
    they like. ``parameters`` are the contract's hyper-parameters as JSON.
    """
    contract, limits = model.contract, model.limits
    hyperparameters = {
        name: {"string_value": dump_json(value).decode()} for name, value in contract.hyperparameters.items()
    }
    delay = {"max_queue_delay_microseconds": int(limits.seconds * 1e6)}
    return {
        "name": contract.name,
        "platform": model.platform,
        "max_batch_size": 0,
        "input": [_describe(spec) for spec in contract.inputs],
        "output": [_describe(spec) for spec in contract.outputs],
        "parameters": hyperparameters,
        **({"dynamic_batching": delay} if model.dynamic_batching else {}),
    }


def _describe(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{wire_name(spec.dtype)}", "dims": _shape(spec)}


def index_entries(registry: ModelRegistry[ModelInfo]) -> list[dict[str, Any]]:
    """Name, version, state and reason of every model, sorted by name, also of those that failed to load."""
    reasons = {name: "" if model.ready else "it is being loaded" for name, model in registry.models.items()}
    reasons |= registry.failures
    return [
        {"name": name, "version": VERSION, "state": "UNAVAILABLE" if reason else READY, "reason": reason}
        for name, reason in sorted(reasons.items())
    ]
