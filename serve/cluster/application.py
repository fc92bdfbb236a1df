"""The application that Ray Serve deploys, built from the arguments of a Serve config file.

``import_path: yolo_assigner.serve.cluster.application:build`` and, under ``args``, settings of ``yolo-assigner serve``
by name.
"""

from __future__ import annotations

from typing import Any

from ray import serve

from yolo_assigner.serve.cluster.options import replica_settings
from yolo_assigner.serve.cluster.replica import Replica
from yolo_assigner.serve.settings import Settings

NAME = "yolo-assigner"
START_TRIES = 3  # of a replica, before the deployment counts as failed
HEALTH_SECONDS = 5.0  # between two checks of a replica; one that ended is noticed at once
CHECK_SECONDS = 30.0  # that a check may take, but for the first one, which waits for the models
WAIT_SECONDS = 0.5  # between looks whether a replica that is to end still has requests
RETRY_SECONDS = 1.0  # as the service says itself when it is full
SURGE_PERCENT = 100  # of the replicas may be started beside the old ones, as far as the cluster has room


def build(args: dict[str, Any]) -> serve.Application:
    """Build the application.

    Args:
        args: Settings by name.

    Raises:
        ValueError: A setting cannot be used.
    """
    return bind(args, deployment_options(replica_settings(args)))


def bind(args: dict[str, Any], options: dict[str, Any]) -> serve.Application:
    """Make an application of settings by name, and of options of its deployment."""
    return serve.deployment(serve.ingress()(Replica), name=NAME, **options).bind(args)


def deployment_options(settings: Settings) -> dict[str, Any]:
    """Options of the deployment that the settings ask for."""
    most = settings.ray_max_replicas or settings.ray_replicas
    scaling = {
        "min_replicas": settings.ray_replicas,
        "max_replicas": most,
        "target_ongoing_requests": settings.ray_target_requests,
    }
    return {
        "ray_actor_options": {"num_cpus": settings.ray_cpus, "num_gpus": settings.ray_gpus},
        **({"num_replicas": most} if most == settings.ray_replicas else {"autoscaling_config": scaling}),
        "max_ongoing_requests": settings.ray_requests,
        "max_queued_requests": settings.max_requests,
        "backpressure_config": {"status_code": 503, "retry_after_s": RETRY_SECONDS},
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "graceful_shutdown_wait_loop_s": WAIT_SECONDS,
        "health_check_period_s": HEALTH_SECONDS,
        "health_check_timeout_s": CHECK_SECONDS,
        "max_constructor_retry_count": START_TRIES,
        "max_surge_percent": SURGE_PERCENT,
        "rolling_update_percentage": 1.0,
    }
