"""What an application is made with; every part has a default that suits tests and small servers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from yolo_assigner.serve.http.admission import Admission
from yolo_assigner.serve.http.auth import Keys
from yolo_assigner.serve.http.metrics import Metrics
from yolo_assigner.serve.http.origins import Origins
from yolo_assigner.serve.settings import MIB


@dataclass(frozen=True)
class AppOptions:
    """Limits and parts of an application.

    Attributes:
        max_request_bytes: Largest body, before and after decompression.
        max_json_bytes: Largest JSON.
        compress_replies: Whether callers that accept gzip get it.
        client_timeout: Seconds that a caller may pause while it sends a body; None: for ever.
        request_timeout: Seconds that a request may wait for its model; None: for ever.
        admission: How much may be under way.
        keys: Who may call.
        origins: Which names of the server, and web pages of which origins, requests may name.
        metrics: Where requests are counted.
        on_loaded: Told when all models are there.
        on_load_failure: Told when no model can be loaded; the server then never gets ready.
    """

    max_request_bytes: int = 256 * MIB
    max_json_bytes: int = 64 * MIB
    compress_replies: bool = False
    client_timeout: float | None = None
    request_timeout: float | None = None
    admission: Admission = field(default_factory=lambda: Admission(64, 1024 * MIB))
    keys: Keys = field(default_factory=Keys)
    origins: Origins = field(default_factory=Origins)
    metrics: Metrics = field(default_factory=Metrics)
    on_loaded: Callable[[], None] | None = None
    on_load_failure: Callable[[BaseException], None] | None = None
