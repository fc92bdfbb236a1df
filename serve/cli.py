"""The command line of the server."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from export.contract import ContractError
from serve.app import MAX_REQUEST_BYTES, create_app
from serve.core import open_artifacts

KEEP_ALIVE_SECONDS = 120  # longer than proxies hold a connection, 75 s and less: the proxy closes it, never we
DRAIN_SECONDS = 30
UNUSABLE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop.

    Args:
        arguments: Command line without the program; the process's own when None.

    Returns:
        Exit code: 0 after a clean stop, 2 when the models or the address cannot be used.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    try:
        registry = open_artifacts(options.artifacts, options.threads)
        listener = _listen(options.host, options.port)
    except (ContractError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return UNUSABLE
    failures: list[BaseException] = []

    def stop(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(registry, max_request_bytes=options.max_request_bytes, on_load_failure=stop)
    server = uvicorn.Server(_config(app, options.log_level))
    _serve(server, listener)
    if failures:
        print(f"serve: a model cannot be loaded: {failures[0]}", file=sys.stderr)
    return UNUSABLE if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve",
        description="Serve exported models over HTTP: Open Inference Protocol v2 under /v2, typed JSON under /v1.",
    )
    parser.add_argument("--artifacts", type=Path, required=True, metavar="DIR", help="where `python -m export` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 chooses a free one (default: %(default)s)")
    parser.add_argument("--threads", type=_count, default=0, help="threads of each model, 0 for one per core")
    parser.add_argument(
        "--max-request-bytes",
        type=_count,
        default=MAX_REQUEST_BYTES,
        help="largest body, also once unpacked (default: %(default)s)",
    )
    levels = ("critical", "error", "warning", "info", "debug")
    parser.add_argument("--log-level", choices=levels, default="info", help="(default: %(default)s)")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen on {host} port {port} ({error}); choose another --host or --port") from error


def _config(app: FastAPI, log_level: str) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level=log_level,
        log_config=None,
        access_log=log_level == "debug",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ws="none",
    )


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    # uvicorn stops on SIGTERM and then raises it again, which would end the process with a failure but for this.
    signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
    print(f"serving on http://{shown}:{port}", flush=True)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        listener.close()
