"""The command ``yolo-assigner serve --ray``: a Ray cluster of this machine, which ends with the command.

Clusters of several machines are Ray's to start; ``serve run`` and ``serve deploy`` then take a Serve config file.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

import ray
from ray import serve

from yolo_assigner.serve.cli import KEEP_ALIVE_SECONDS, UNUSABLE, make_service
from yolo_assigner.serve.cluster.application import NAME, build
from yolo_assigner.serve.cluster.guard import CALLBACK, IMPORT_PATH
from yolo_assigner.serve.cluster.options import arguments_of, proxy_variables, replica_settings
from yolo_assigner.serve.settings import Configuration, Settings

STOPPING = (signal.SIGTERM, signal.SIGINT)
logger = logging.getLogger("serve")


def run(configuration: Configuration) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        configuration: Settings with their sources; those that were given go to the replicas.

    Returns:
        Exit code: 0 after a clean stop, 2 when no replica could be started.

    Raises:
        ValueError: A setting is of no use in a cluster.
    """
    arguments = arguments_of(configuration)
    settings = configuration.settings
    application = build(arguments)
    make_service(replica_settings(arguments)).close()  # faults of the artifacts show before a cluster is started
    os.environ |= cluster_variables(settings, arguments)
    stop = threading.Event()
    try:
        ray.init(address="local", include_dashboard=False, configure_logging=False)
        for number in STOPPING:  # ray.init sets handlers of its own
            signal.signal(number, lambda *_: stop.set())
        serve.start(proxy_location="HeadOnly", http_options=http_options(settings))
        serve.run(application, name=NAME, route_prefix="/")
    except (RuntimeError, ray.exceptions.RayError) as error:
        print(f"serve: no replica could be started: {error}", file=sys.stderr)
        ray.shutdown()
        return UNUSABLE
    scheme = "https" if settings.ssl_certfile else "http"
    print(f"serving on {scheme}://{settings.host}:{settings.port}", flush=True)
    stop.wait()
    logger.info("stopping; requests under way get %g s", settings.drain_seconds)
    _stop()
    return 0


def cluster_variables(settings: Settings, arguments: dict[str, Any]) -> dict[str, str]:
    """Variables of the environment that the cluster's processes are to have."""
    return {
        CALLBACK: IMPORT_PATH,
        "RAY_USAGE_STATS_ENABLED": "0",  # Ray would report to its makers
        "FORWARDED_ALLOW_IPS": ",".join(settings.trusted_proxy),
        **proxy_variables(arguments),
    }


def http_options(settings: Settings) -> dict[str, Any]:
    """Options of Ray's proxies."""
    tls = {
        "ssl_certfile": str(settings.ssl_certfile),
        "ssl_keyfile": str(settings.ssl_keyfile),
        "ssl_keyfile_password": settings.keyfile_password,
    }
    return {
        "host": settings.host,
        "port": settings.port,
        "keep_alive_timeout_s": KEEP_ALIVE_SECONDS,
        **(tls if settings.ssl_certfile else {}),
    }


def _stop() -> None:
    """End the cluster, the replicas first: Ray would end its proxies with the requests that are under way."""
    with suppress(TimeoutError):  # Ray waits for a minute
        serve.delete(NAME)
    serve.shutdown()
    ray.shutdown()
