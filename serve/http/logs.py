"""Logs: one line an event, as text for people or as JSON for collectors, each with the request it belongs to."""

from __future__ import annotations

import logging
from contextvars import ContextVar

from pythonjsonlogger.json import JsonFormatter

request_id: ContextVar[str] = ContextVar("request_id", default="-")
TIME = "%Y-%m-%dT%H:%M:%S%z"
FIELDS = "%(levelname)s %(name)s %(request_id)s %(message)s"


def configure_logs(level: str, form: str) -> None:
    """Send everything that is logged to standard error.

    Args:
        level: Least level, in small letters.
        form: ``text`` or ``json``.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_add_request_id)
    if form == "json":
        names = {"levelname": "level", "name": "logger"}
        handler.setFormatter(JsonFormatter(FIELDS, rename_fields=names, timestamp=True))
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s", TIME)
        )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True
