"""Prometheus metrics, on a port of their own: they need no key there, and callers need not reach it."""

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

from yolo_assigner.serve.http.routes import STATUSES

PREFIX = "yolo_assigner"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """All metrics of a server, in a registry of their own: a process may have several servers.

    Attributes:
        registry: The registry.
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
        """Set the versions that are shown."""
        self._info.info(versions)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when the metrics are collected."""
        Gauge(f"{PREFIX}_{name}", text, registry=self.registry).set_function(read)

    def watch_count(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a counter that is read when the metrics are collected."""
        self.registry.register(_Count(f"{PREFIX}_{name}", text, read))

    def watch_process(self, pid: Callable[[], int | None]) -> None:
        """Add memory, processor time and open files of another process; none while ``pid`` returns None."""
        ProcessCollector(f"{PREFIX}_engine", lambda: pid() or "none", registry=self.registry)

    def answered(
        self, route: str, status: int, received: int, sent: int, seconds: float, reason: str | None = None
    ) -> None:
        """Count a request and its reply.

        Args:
            route: Label of the endpoint, never a text of the caller.
            status: HTTP status.
            received: Bytes of the request's body.
            sent: Bytes of the reply's body.
            seconds: From the headers to the end of the reply.
            reason: Why it was refused or failed; by its status when None.
        """
        self._received.inc(received)
        self._sent.inc(sent)
        self._seconds.labels(route).observe(seconds)
        if status >= min(STATUSES):
            self.refused(route, status, reason)
        else:
            self._requests.labels(route, str(status)).inc()

    def refused(self, route: str, status: int, reason: str | None = None) -> None:
        """Count a request that was refused or failed."""
        self._requests.labels(route, str(status)).inc()
        known = STATUSES.get(status)
        self._failures.labels(route, reason or (known.reason if known else "other")).inc()

    def waited(self, model: str, nanoseconds: int) -> None:
        """Record how long a request waited for its engine."""
        self._queue.labels(model).observe(nanoseconds / 1e9)

    def called(self, model: str, images: int, engine_ns: int) -> None:
        """Record a call of an engine."""
        self._engine.labels(model).observe(engine_ns / 1e9)
        self._images.labels(model).observe(images)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, label: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, [label], buckets=buckets, registry=self.registry)


class _Count(Collector):
    """A counter whose value is kept elsewhere."""

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._name, self._text, self._read = name, text, read

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Read the value."""
        yield CounterMetricFamily(self._name, self._text, self._read())


def serve_metrics(metrics: Metrics, host: str, port: int) -> tuple[WSGIServer, threading.Thread]:
    """Serve metrics at ``/metrics``, in a thread.

    Args:
        metrics: The metrics.
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
