"""The command ``yolo-assigner serve``: read the settings, make the parts, run until a signal."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import closing

import uvicorn
from fastapi import FastAPI

from yolo_assigner.serve.app import AppParts, create_app
from yolo_assigner.serve.http.admission import Admission
from yolo_assigner.serve.http.auth import keys_of
from yolo_assigner.serve.http.connection import protocol
from yolo_assigner.serve.http.limits import ConnectionLimits
from yolo_assigner.serve.http.metrics import serve_metrics
from yolo_assigner.serve.http.observe import Refusals
from yolo_assigner.serve.http.origins import origins_of
from yolo_assigner.serve.inference.batching import BatchLimits
from yolo_assigner.serve.inference.local import Setup, service_of
from yolo_assigner.serve.inference.runners.base import parse_device
from yolo_assigner.serve.inference.runners.choice import RunnerOptions
from yolo_assigner.serve.inference.service import Service
from yolo_assigner.serve.lifecycle import Reloader, Server
from yolo_assigner.serve.listening import Listener, check_certificate, listen, reload_certificate
from yolo_assigner.serve.logs import configure_logs, make_streams_nonblocking
from yolo_assigner.serve.process.supervisor import RemoteService
from yolo_assigner.serve.settings import Configuration, Settings, describe, read_settings
from yolo_assigner.serve.system import (
    freeze_gc,
    keep_large_blocks,
    raise_descriptor_limit,
    shorten_switch_interval,
)
from yolo_assigner.serve.versions import OURS, SERVER_HEADER

KEEP_ALIVE_SECONDS = 120  # longer than any proxy's (75 s and less), so that never the server closes a connection in use
UNUSABLE = 2
logger = logging.getLogger("serve")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal.

    Args:
        arguments: Command line without the program; the process's own when None.

    Returns:
        Exit code: 0 after a clean stop, 2 when the settings, the models or the address cannot be used.
    """
    dropped_lines = make_streams_nonblocking()
    try:
        configuration = read_settings(arguments, os.environ)
        if configuration.show:
            print(describe(configuration))
            return 0
        configure_logs(configuration.settings.log_level, configuration.settings.log_format)
        if configuration.settings.ray:
            return _run_on_ray(configuration)
        return _run(configuration, dropped_lines)
    except (ValueError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return UNUSABLE


def _run_on_ray(configuration: Configuration) -> int:
    try:
        from yolo_assigner.serve.cluster.command import run
    except ModuleNotFoundError as error:
        raise ValueError(f"--ray needs Ray ({error}); install yolo-assigner[ray]") from error
    return run(configuration)


def _run(configuration: Configuration, dropped_lines: Callable[[], int]) -> int:
    settings = configuration.settings
    service = make_service(settings)
    if settings.ssl_certfile is not None and settings.ssl_keyfile is not None:
        check_certificate(settings.ssl_certfile, settings.ssl_keyfile, settings.keyfile_password)
    failures: list[BaseException] = []

    def fail(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    shorten_switch_interval()
    keep_large_blocks()
    parts = make_parts(settings, fail)
    parts.metrics.watch_count("log_records_dropped", "Lines of the log that nobody read in time.", dropped_lines)
    parts.metrics.watch("memory_limit_bytes", "What all processes may have.", lambda: configuration.memory.nbytes)
    with closing(listen(settings)) as listener:
        logger.info("limits: %s", configuration.limits)
        if configuration.warning is not None:
            logger.warning("%s", configuration.warning)
        config = _config(create_app(service, settings, parts), settings, Refusals(parts.metrics))
        reloader = Reloader(service, _reloaders(parts, settings, config))
        server = Server(
            config, parts.admission, settings.lame_duck_seconds, reloader.start, on_closing=listener.remove_file
        )
        if settings.metrics_port is not None:
            shown, _ = serve_metrics(parts.metrics, settings.metrics_host, settings.metrics_port)
            logger.info("metrics on http://%s:%d/metrics", settings.metrics_host, shown.server_port)
        _serve(server, listener, "https" if settings.ssl_certfile else "http")
    if failures:
        print(f"serve: a model cannot be loaded: {failures[0]}", file=sys.stderr)
    return UNUSABLE if failures else 0


def make_parts(settings: Settings, fail: Callable[[BaseException], None]) -> AppParts:
    """Make the objects that the settings describe.

    Args:
        settings: Limits, keys and origins.
        fail: Called when no model can be loaded.

    Raises:
        ValueError: A file of keys cannot be used.
    """
    keys = keys_of(settings)
    return AppParts(
        admission=Admission(settings.max_requests, settings.max_total_bytes),
        keys=keys,
        origins=origins_of(settings, keys.needed),
        on_loaded=freeze_gc,
        on_load_failure=fail,
    )


def _reloaders(parts: AppParts, settings: Settings, config: uvicorn.Config) -> dict[str, Callable[[], None]]:
    """Functions that reload files besides the models, by their names in the log."""
    files: dict[str, Callable[[], None]] = {}
    if settings.api_key_file is not None or settings.admin_key_file is not None:
        files["keys"] = parts.keys.reload
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile
    if certificate is not None and key is not None:
        files["certificate"] = lambda: reload_certificate(config.ssl, certificate, key, settings.keyfile_password)
    return files


def make_service(settings: Settings) -> Service:
    """Open the artifacts. Faults that show without loading the models are raised at once.

    Raises:
        ValueError: The artifacts, the engine or the shared memory cannot be used.
    """
    device = parse_device(settings.device) if settings.device else None
    setup = Setup(
        settings.artifacts,
        RunnerOptions(settings.engine, device, settings.threads),
        BatchLimits(settings.batch_images, settings.batch_wait, settings.max_work_bytes),
        settings.max_work_bytes,
        settings.engine_timeout,
        settings.shared_memory,
        settings.max_request_bytes,
        settings.max_total_bytes,
        settings.log_level,
        settings.log_format,
    )
    local = service_of(setup)
    if not settings.engine_process:
        return local
    setup = setup._replace(failures=tuple(local.registry.failures.items()))
    return RemoteService([model.contract for model in local.registry.models.values()], setup)


def _config(app: FastAPI, settings: Settings, refusals: Refusals) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level=settings.log_level,
        log_config=None,
        proxy_headers=bool(settings.trusted_proxy),
        forwarded_allow_ips=list(settings.trusted_proxy),
        access_log=False,  # the application writes its own, with identifiers
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(int(settings.drain_seconds), 1),
        http=protocol(settings.client_timeout or None, _connection_limits(settings), refusals),
        ws="none",
        headers=[(SERVER_HEADER, OURS)],
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        ssl_keyfile_password=settings.keyfile_password,
    )


def _connection_limits(settings: Settings) -> ConnectionLimits:
    """Give connections half of the file descriptors. The others are for shared memory and what libraries open."""
    descriptors = raise_descriptor_limit()
    most = min(settings.max_connections, max(descriptors // 2, 1))
    if most < settings.max_connections:
        logger.warning("%d connections at most, of %d descriptors; raise `ulimit -n` for more", most, descriptors)
    return ConnectionLimits(most)


def _serve(server: Server, listener: Listener, scheme: str) -> None:
    # uvicorn handles signals once it runs, but one may come as soon as the line below is read.
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, server.handle_exit)
    print(f"serving on {listener.shown(scheme)}", flush=True)
    server.run(sockets=listener.sockets)
