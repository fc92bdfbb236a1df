"""The protocol on HTTP: rows 1 to 6. Each route asks the core and writes down what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from yolo_assigner.export.contract import TensorSpec
from yolo_assigner.serve.errors import BadRequestError, BusyError, UnsupportedError
from yolo_assigner.serve.http.body import BodyReader, header_number
from yolo_assigner.serve.http.disconnect import unless_disconnected
from yolo_assigner.serve.http.replies import JSON_LENGTH, ReplyInParts, reply
from yolo_assigner.serve.inference.registry import VERSION, ModelInfo, ModelRegistry, check_loaded
from yolo_assigner.serve.inference.service import Operation, Service, new_call
from yolo_assigner.serve.options import AppOptions
from yolo_assigner.serve.versions import CLIENT_HEADER, check_client
from yolo_assigner.serve.wire.dtypes import wire_name
from yolo_assigner.serve.wire.request import parse_object
from yolo_loss import __version__


async def _version(request: Request) -> str | None:
    return request.path_params.get("version")  # of a path that has one; never from elsewhere


Version = Annotated[str | None, Depends(_version)]


def health_routes(service: Service, options: AppOptions) -> APIRouter:
    """Rows 1 to 5 and 8: what the server and its models are, whether they can be used, and what they have done."""
    registry = service.registry
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    # The lower route is added first and answers both verbs; the upper one describes them: OpenAPI has a reply's body
    # in every entry, and HEAD has none.
    @router.get("/health/live", summary="The process is of use, or will be; HEAD like GET")
    @router.api_route("/health/live", methods=["GET", "HEAD"], include_in_schema=False)
    async def live() -> Response:
        service.check_alive()
        return reply({"live": True})

    @router.get("/health/ready", summary="Models can be used; 503 while loading or stopping; HEAD like GET")
    @router.api_route("/health/ready", methods=["GET", "HEAD"], include_in_schema=False)
    async def ready() -> Response:
        if options.admission.closing:
            raise BusyError("this server is about to stop; send requests to another one")
        service.check_ready()
        return reply({"ready": True})

    @router.get("", summary="Name, version and extensions of the server")
    async def server() -> Response:
        return reply(server_metadata(service.extensions))

    @router.get("/models/{name}/versions/{version}/ready", summary="One version can be used")
    @router.get("/models/{name}/ready", summary="One model can be used")
    async def model_ready(name: str, version: Version) -> Response:
        registry.find(name, version)
        check_loaded(registry, name)
        return reply({"name": name, "ready": True})

    @router.get("/models/stats", summary="What all models have done")
    @router.get("/models/{name}/versions/{version}/stats", summary="What one version has done")
    @router.get("/models/{name}/stats", summary="What one model has done")
    async def stats(request: Request, version: Version) -> Response:
        name = request.path_params.get("name")
        models = registry.models.values() if name is None else [registry.find(name, version)]
        return reply({"model_stats": [model.stats.as_json(model.contract.name, VERSION) for model in models]})

    @router.get("/models/{name}/versions/{version}", summary="Inputs and outputs of one version")
    @router.get("/models/{name}", summary="Inputs and outputs of one model")
    async def model(name: str, version: Version) -> Response:
        return reply(model_metadata(registry.find(name, version)))

    return router


def infer_routes(service: Service, bodies: BodyReader, options: AppOptions) -> APIRouter:
    """Row 6. The body is taken from the raw stream: clients send no Content-Type."""
    registry = service.registry
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @router.post("/models/{name}/versions/{version}/infer", summary="Run one version")
    @router.post("/models/{name}/infer", summary="Run one model")
    async def infer(request: Request, name: str, version: Version) -> Response:
        check_client(request.headers.get(CLIENT_HEADER))
        registry.find(name, version)
        service.check(name)
        json_length = header_number(request.headers, JSON_LENGTH)
        body = await bodies.read(request.scope, request.receive, json_length)
        work = service.run(new_call(Operation.INFER, name, json_length, options.request_timeout), body)
        return ReplyInParts(await unless_disconnected(request.receive, work))

    return router


EXTENSIONS = ("binary_tensor_data",)


def server_metadata(extensions: Sequence[str] = ()) -> dict[str, Any]:
    """Row 4: name, version and the extensions that can be used."""
    return {"name": "yolo-assigner", "version": __version__, "extensions": [*EXTENSIONS, *extensions]}


def model_metadata(model: ModelInfo) -> dict[str, Any]:
    """Row 5. Outputs that are only sent when named say ``"parameters": {"default": false}``."""
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
    shape = [axis if isinstance(axis, int) else -1 for axis in spec.axes]
    return {"name": spec.name, "datatype": wire_name(spec.dtype), "shape": shape}


BODY_BYTES = 2**16
READY = "READY"


def repository_routes(service: Service, options: AppOptions) -> APIRouter:
    """Configuration and index."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    bodies = BodyReader(BODY_BYTES, pause=options.client_timeout, remedy="send what the protocol asks for")

    @router.get("/models/{name}/versions/{version}/config", summary="Configuration of one version")
    @router.get("/models/{name}/config", summary="Configuration of one model")
    async def config(name: str, version: Version) -> Response:
        return reply(model_config(service.registry.find(name, version)))

    @router.post("/repository/index", summary="All models and their states; the body may be empty")
    async def index(request: Request) -> Response:
        body = await bodies.read(request.scope, request.receive)
        ready = parse_object(body).get("ready", False) if len(body) else False
        if not isinstance(ready, bool):
            raise BadRequestError(f"ready is {ready!r}; write true or false")
        entries = index_entries(service.registry)
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
        return reply(next(entry for entry in index_entries(service.registry) if entry["name"] == name))

    return router


def model_config(model: ModelInfo) -> dict[str, Any]:
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
        **({"dynamic_batching": delay} if model.dynamic_batching else {}),
    }


def index_entries(registry: ModelRegistry[ModelInfo]) -> list[dict[str, Any]]:
    """A line for each model, by name, also for those that cannot be loaded."""
    reasons = {name: "" if model.ready else "it is being loaded" for name, model in registry.models.items()}
    reasons |= registry.failures
    return [
        {"name": name, "version": VERSION, "state": "UNAVAILABLE" if reason else READY, "reason": reason}
        for name, reason in sorted(reasons.items())
    ]


def _describe(spec: TensorSpec) -> dict[str, Any]:
    dims = [axis if isinstance(axis, int) else -1 for axis in spec.axes]
    return {"name": spec.name, "data_type": f"TYPE_{wire_name(spec.dtype)}", "dims": dims}


NOTHING = memoryview(b"")


def shared_memory_routes(service: Service, options: AppOptions) -> APIRouter:
    """Routes that list, register and unregister regions of POSIX shared memory.

    Args:
        service: Holds the regions; answers 501 while shared memory is switched off.
        options: Limits.
    """
    router = APIRouter(prefix="/v2/systemsharedmemory", tags=["Open Inference Protocol"])
    bodies = BodyReader(BODY_BYTES, pause=options.client_timeout, remedy="send what the protocol asks for")

    async def answer(operation: Operation, request: Request, body: memoryview = NOTHING) -> Response:
        return ReplyInParts(await service.run(new_call(operation, request.path_params.get("name")), body))

    @router.get("/region/{name}/status", summary="One region of shared memory")
    @router.get("/status", summary="All regions of shared memory")
    async def status(request: Request) -> Response:
        return await answer(Operation.REGION_STATUS, request)

    @router.post("/region/{name}/register", summary="Register a region of shared memory")
    async def register(request: Request) -> Response:
        return await answer(Operation.REGION_REGISTER, request, await bodies.read(request.scope, request.receive))

    @router.post("/region/{name}/unregister", summary="Unregister one region of shared memory")
    @router.post("/unregister", summary="Unregister all regions of shared memory")
    async def unregister(request: Request) -> Response:
        return await answer(Operation.REGION_UNREGISTER, request)

    return router


UNLOADING = "models cannot be unloaded; remove the files from --artifacts and start the server again"
TRACING = "tracing is not available; --log-level debug shows every request"
LOGGING = "logging cannot be changed here; start the server with another --log-level"
CUDA = "CUDA shared memory is not available; use system shared memory, or send the tensors in the request"
UNSUPPORTED = {
    "POST /repository/models/{name}/unload": UNLOADING,
    "GET /trace/setting": TRACING,
    "POST /trace/setting": TRACING,
    "GET /models/{name}/trace/setting": TRACING,
    "POST /models/{name}/trace/setting": TRACING,
    "GET /logging": LOGGING,
    "POST /logging": LOGGING,
    "POST /cudasharedmemory/region/{name}/register": CUDA,
    "POST /cudasharedmemory/region/{name}/unregister": CUDA,
}


def triton_routes() -> APIRouter:
    """Routes that Triton's clients call and this server has no use for.

    Triton's examples begin by unregistering all CUDA regions: there are none, so that succeeds. All else is refused.
    """
    router = APIRouter(prefix="/v2", include_in_schema=False)

    @router.get("/cudasharedmemory/region/{name}/status")
    @router.get("/cudasharedmemory/status")
    async def no_cuda_regions() -> Response:
        return reply([])

    @router.post("/cudasharedmemory/unregister")
    async def unregister_cuda_regions() -> Response:
        return reply({})

    for route, reason in UNSUPPORTED.items():
        method, path = route.split()
        router.add_api_route(path, _refusing(reason), methods=[method])
    return router


def _refusing(reason: str) -> Callable[[], Awaitable[Response]]:
    async def refuse() -> Response:
        raise UnsupportedError(reason)

    return refuse
