"""All endpoints in one table, and all statuses in another.

Routers, the key guard, admission, metrics and the OpenAPI document read them; nothing else knows a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple

from starlette.routing import compile_path

from yolo_assigner.serve.http import schemas_v2 as v2
from yolo_assigner.serve.v1 import schemas as v1

V1, V2 = "v1 JSON API", "Open Inference Protocol"
VERSIONED = "/versions/{version}"  # follows {name} in a second path of the same endpoint


class Status(NamedTuple):
    """An HTTP status of a refused or failed request.

    Attributes:
        reason: Label of the failures metric.
        meaning: Text of the OpenAPI document.
    """

    reason: str
    meaning: str


STATUSES = {
    400: Status("bad_request", "It breaks the protocol, or does not fit the model"),
    401: Status("no_key", "No key"),
    403: Status(
        "forbidden",
        "A key that is not good for this, a Host that is not the server's, or a web page that may not call",
    ),
    404: Status("not_found", "No such model, version, region or path"),
    405: Status("wrong_verb", "Another verb is wanted"),
    408: Status("too_slow", "It came too slowly"),
    413: Status("too_large", "It, or what it asks for, is over a limit of the server"),
    429: Status("wrong_keys", "Too many requests with wrong keys came from the same address"),
    431: Status("large_head", "Its head is over a limit of the server"),
    500: Status("engine", "The engine failed"),
    501: Status("unsupported", "Something that this server does not do, or that is switched off"),
    503: Status(
        "busy",
        "A model cannot be loaded or is not loaded yet, too much is under way, or the server is about to stop",
    ),
    504: Status("too_late", "Its time was over before its model got to it"),
}
KEY = (401, 403, 429)
NAMED = (*KEY, 404, 405)  # a name may contain anything, also what leads to another path
BODY = (400, 408, 413, 501)
COMPUTED = (*KEY, *BODY, 404, 500, 503, 504)


class Access(Enum):
    """Which key a request needs, where the server has keys."""

    OPEN = auto()
    INFERENCE = auto()
    ADMINISTRATION = auto()


@dataclass(frozen=True, kw_only=True)
class Route:
    """An endpoint.

    Attributes:
        name: Key of its handler, and first part of its operation's identifier in the OpenAPI document.
        path: With parameters in braces, as Starlette reads it.
        method: HTTP method.
        head: HEAD is answered like GET.
        versioned: It is also served with ``VERSIONED`` behind the model's name.
        access: Which key it needs.
        admitted: It takes a place among the requests under way, by the size of its body.
        needs_models: It is refused until all models are loaded.
        metric: Label ``route`` of the metrics. Names of models are no labels: callers could make up any number.
        unsupported: What to do instead, for a part of the protocol that is always refused with 501.
        tag: Section of the OpenAPI document.
        summary: Title there.
        description: Text there.
        reply: Type of the JSON reply; None: the route is not in the document.
        refusals: Statuses besides 200.
        request: Type of the JSON request; None: there is no body.
        request_required: The body may not be empty.
        binary: Tensors may follow the JSON, in request and reply.
    """

    name: str
    path: str
    method: str = "GET"
    head: bool = False
    versioned: bool = False
    access: Access = Access.INFERENCE
    admitted: bool = False
    needs_models: bool = False
    metric: str = "other"
    unsupported: str = ""
    tag: str = V2
    summary: str = ""
    description: str = ""
    reply: Any = None
    refusals: tuple[int, ...] = ()
    request: Any = None
    request_required: bool = True
    binary: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths; the one with a version first, which is the more specific one."""
        return (self.path.replace("{name}", "{name}" + VERSIONED), self.path) if self.versioned else (self.path,)


def _unsupported(path: str, *methods: str, remedy: str, access: Access = Access.ADMINISTRATION) -> tuple[Route, ...]:
    return tuple(
        Route(name="unsupported", path=path, method=method, access=access, unsupported=remedy) for method in methods
    )


UNLOADING = "models cannot be unloaded; remove the files from --artifacts and start the server again"
TRACING = "tracing is not available; --log-level debug shows every request"
LOGGING = "logging cannot be changed here; start the server with another --log-level"
CUDA = "CUDA shared memory is not available; use system shared memory, or send the tensors in the request"
REGIONS, CUDA_REGIONS = "/v2/systemsharedmemory", "/v2/cudasharedmemory"
ROUTES: tuple[Route, ...] = (
    Route(
        name="infer", path="/v2/models/{name}/infer", method="POST", versioned=True, admitted=True, metric="infer",
        summary="Run a model", reply=v2.InferReply, refusals=(*COMPUTED, 405), request=v2.InferRequest, binary=True,
    ),
    Route(
        name="loss", path="/v1/loss", method="POST", admitted=True, needs_models=True, metric="loss", tag=V1,
        summary="The detection loss of a batch", reply=v1.LossReply, refusals=COMPUTED, request=v1.LossRequest,
        description="Loss, its three terms, and the sums of each image, from raw predictions and boxes.",
    ),
    Route(
        name="assign", path="/v1/assign", method="POST", admitted=True, needs_models=True, metric="assign", tag=V1,
        summary="Which anchors learn which box", reply=v1.AssignReply, refusals=COMPUTED, request=v1.AssignRequest,
        description="The task-aligned assignment, from raw or decoded predictions and boxes.",
    ),
    Route(
        name="explain", path="/v1/explain", method="POST", admitted=True, needs_models=True, metric="explain", tag=V1,
        summary="Why a box is learned or not", reply=v1.ExplainReply, refusals=COMPUTED, request=v1.ExplainRequest,
        description="What became of every box and every candidate anchor, in numbers and in words, and the loss by "
        "box. Needs a model of kind `explain`.",
    ),
    Route(
        name="reduce", path="/v1/reduce", method="POST", admitted=True, metric="reduce", tag=V1,
        summary="The loss of one batch over many workers", reply=v1.ReduceReply, refusals=COMPUTED,
        request=v1.ReduceRequest,
        description="Exactly the loss of one large batch, from the image sums of the workers that share it.",
    ),
    Route(
        name="live", path="/v2/health/live", head=True, access=Access.OPEN, metric="health",
        summary="The process is of use, or will be; HEAD like GET", reply=v2.Live, refusals=(403, 503),
    ),
    Route(
        name="ready", path="/v2/health/ready", head=True, access=Access.OPEN, metric="health",
        summary="Models can be used; 503 while loading or stopping; HEAD like GET", reply=v2.Ready,
        refusals=(403, 503),
    ),
    Route(
        name="server", path="/v2", summary="Name, version and extensions of the server", reply=v2.ServerMetadata,
        refusals=KEY,
    ),
    Route(
        name="model_ready", path="/v2/models/{name}/ready", versioned=True, metric="health",
        summary="A model can be used", reply=v2.ModelReady, refusals=(*NAMED, 503),
    ),
    Route(
        name="stats", path="/v2/models/stats", summary="What all models have done", reply=v2.Statistics,
        refusals=KEY,
    ),
    Route(
        name="stats", path="/v2/models/{name}/stats", versioned=True, summary="What a model has done",
        reply=v2.Statistics, refusals=(*NAMED, 503),
    ),
    Route(
        name="model", path="/v2/models/{name}", versioned=True, summary="Inputs and outputs of a model",
        reply=v2.ModelMetadata, refusals=(*NAMED, 503),
    ),
    Route(
        name="config", path="/v2/models/{name}/config", versioned=True, summary="Configuration of a model",
        reply=v2.ModelConfig, refusals=(*NAMED, 503),
    ),
    Route(
        name="index", path="/v2/repository/index", method="POST",
        summary="All models and their states; the body may be empty", reply=list[v2.ModelState],
        refusals=(*KEY, *BODY), request=v2.IndexRequest, request_required=False,
    ),
    Route(
        name="load", path="/v2/repository/models/{name}/load", method="POST", access=Access.ADMINISTRATION,
        summary="Load a model's files anew; the one in use stays if they fail", reply=v2.ModelState,
        refusals=(*NAMED, *BODY, 500, 503), request=v2.Nothing, request_required=False,
    ),
    Route(
        name="region_status", path=f"{REGIONS}/status", access=Access.ADMINISTRATION, metric="shared_memory",
        summary="All regions of shared memory", reply=list[v2.Region], refusals=(*KEY, 501, 503),
    ),
    Route(
        name="region_status", path=f"{REGIONS}/region/{{name}}/status", access=Access.ADMINISTRATION,
        metric="shared_memory", summary="One region of shared memory", reply=list[v2.Region],
        refusals=(*NAMED, 501, 503),
    ),
    Route(
        name="region_register", path=f"{REGIONS}/region/{{name}}/register", method="POST",
        access=Access.ADMINISTRATION, metric="shared_memory", summary="Register a region of shared memory",
        reply=v2.Nothing, refusals=(*NAMED, *BODY, 503), request=v2.RegionRequest,
    ),
    Route(
        name="region_unregister", path=f"{REGIONS}/region/{{name}}/unregister", method="POST",
        access=Access.ADMINISTRATION, metric="shared_memory", summary="Unregister one region of shared memory",
        reply=v2.Nothing, refusals=(*NAMED, 501, 503),
    ),
    Route(
        name="region_unregister", path=f"{REGIONS}/unregister", method="POST", access=Access.ADMINISTRATION,
        metric="shared_memory", summary="Unregister all regions of shared memory", reply=v2.Nothing,
        refusals=(*KEY, 501, 503),
    ),
    # Triton's examples begin by unregistering all CUDA regions: there are none, so that succeeds.
    Route(name="no_regions", path=f"{CUDA_REGIONS}/status", access=Access.ADMINISTRATION),
    Route(name="no_regions", path=f"{CUDA_REGIONS}/region/{{name}}/status", access=Access.ADMINISTRATION),
    Route(name="nothing", path=f"{CUDA_REGIONS}/unregister", method="POST", access=Access.ADMINISTRATION),
    *_unsupported(f"{CUDA_REGIONS}/region/{{name}}/register", "POST", remedy=CUDA),
    *_unsupported(f"{CUDA_REGIONS}/region/{{name}}/unregister", "POST", remedy=CUDA),
    *_unsupported("/v2/repository/models/{name}/unload", "POST", remedy=UNLOADING),
    *_unsupported("/v2/trace/setting", "GET", "POST", remedy=TRACING),
    *_unsupported("/v2/models/{name}/trace/setting", "GET", "POST", remedy=TRACING, access=Access.INFERENCE),
    *_unsupported("/v2/logging", "GET", "POST", remedy=LOGGING),
)  # fmt: skip
DOCS_PATH = "/docs"
# The page that shows the OpenAPI document, and the files that it loads.
DOCS = tuple(Route(name="docs", path=path, access=Access.OPEN) for path in (DOCS_PATH, f"{DOCS_PATH}/{{file:path}}"))
INSPECTOR_PATH = "/inspector"
# The page at the root, which shows explanations, and the files that it loads. What it asks for needs the key.
INSPECTOR = tuple(
    Route(name="inspector", path=path, access=Access.OPEN) for path in ("/", f"{INSPECTOR_PATH}/{{file:path}}")
)
_PATTERNS = tuple((compile_path(path)[0], route) for route in (*ROUTES, *DOCS, *INSPECTOR) for path in route.paths)


def route_of(path: str) -> Route | None:
    """The first endpoint with a path, whatever the method; None for paths that lead nowhere.

    The patterns and their order are the router's own, so that a guard never judges another endpoint than the one that
    answers.
    """
    return next((route for pattern, route in _PATTERNS if pattern.match(path)), None)
