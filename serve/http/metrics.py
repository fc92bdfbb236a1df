"""Prometheus metrics, on a port of their own so that they need no key and can be kept from callers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

PREFIX = "yolo_assigner"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
REASONS = {
    400: "bad_request",
    401: "no_key",
    403: "forbidden",
    404: "not_found",
    405: "wrong_verb",
    408: "too_slow",
    413: "too_large",
    429: "wrong_keys",
    431: "large_head",
    500: "engine",
    501: "unsupported",
    503: "busy",
    504: "too_late",
}


class Metrics:
    """All metrics of a server. A registry of its own: several servers may live in one process.

    Attributes:
        registry: What is shown.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = self._counter("requests", "Requests answered.", "route", "status")
        self._failures = self._counter("failures", "Requests refused or failed.", "route", "reason")
        self._received = self._counter("received_bytes", "Bytes of request bodies.")
        self._sent = self._counter("sent_bytes", "Bytes of reply bodies.")
        self._seconds = self._histogram("request_seconds", "From headers to the end of the reply.", "route", SECONDS)
        self._queue = self._histogram("queue_seconds", "Wait for the model's engine.", "model", SECONDS)
        self._engine = self._histogram("engine_seconds", "One call of the engine.", "model", SECONDS)
        self._images = self._histogram("batch_images", "Images of one call of the engine.", "model", IMAGES)
        self._info = Info(f"{PREFIX}_build", "Versions.", registry=registry)

    def describe(self, versions: dict[str, str]) -> None:
        """Say what is running."""
        self._info.info(versions)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when somebody looks."""
        Gauge(f"{PREFIX}_{name}", text, registry=self.registry).set_function(read)

    def watch_count(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A counter that is read when somebody looks."""
        self.registry.register(_Count(f"{PREFIX}_{name}", text, read))

    def watch_process(self, pid: Callable[[], int | None]) -> None:
        """Memory, processor time and open files of another process; nothing while there is none."""
        ProcessCollector(f"{PREFIX}_engine", lambda: pid() or "none", registry=self.registry)

    def answered(
        self, route: str, status: int, received: int, sent: int, seconds: float, reason: str | None = None
    ) -> None:
        """A request has got its reply.

        Args:
            route: One of few names, never what a caller sent.
            status: HTTP status.
            received: Bytes of the request's body.
            sent: Bytes of the reply's body.
            seconds: From the headers to the end of the reply.
            reason: Why it was refused or failed, where several reasons have its status.
        """
        self._received.inc(received)
        self._sent.inc(sent)
        self._seconds.labels(route).observe(seconds)
        if status >= min(REASONS):
            self.refused(route, status, reason)
        else:
            self._requests.labels(route, str(status)).inc()

    def refused(self, route: str, status: int, reason: str | None = None) -> None:
        """A request was refused or failed."""
        self._requests.labels(route, str(status)).inc()
        self._failures.labels(route, reason or REASONS.get(status, "other")).inc()

    def waited(self, model: str, nanoseconds: int) -> None:
        """A request has waited so long for its engine."""
        self._queue.labels(model).observe(nanoseconds / 1e9)

    def called(self, model: str, images: int, engine_ns: int) -> None:
        """An engine has run."""
        self._engine.labels(model).observe(engine_ns / 1e9)
        self._images.labels(model).observe(images)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, label: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, [label], buckets=buckets, registry=self.registry)


class _Count(Collector):
    """A counter that is kept elsewhere."""

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._name, self._text, self._read = name, text, read

    def collect(self) -> Iterable[CounterMetricFamily]:
        """What it is now."""
        yield CounterMetricFamily(self._name, self._text, self._read())


def serve_metrics(metrics: Metrics, host: str, port: int) -> tuple[WSGIServer, threading.Thread]:
    """Show them at ``/metrics``.

    Args:
        metrics: What is shown.
        host: Address to listen on.
        port: 0 chooses a free one.

    Raises:
        OSError: The address cannot be used.
    """
    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise OSError(f"cannot show metrics on {host} port {port} ({error}); choose another --metrics-port") from error
    return server, thread
