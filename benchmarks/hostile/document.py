"""Requests made from the OpenAPI document, such that fit it and such that do not, by schemathesis."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# What the server does not do is no failure of it.
CONFIGURATION = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "4xx", "501", "503", "504"]\n'
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,"
    "negative_data_rejection,unsupported_method,allow_header_conformance"
)


class Fuzzed(NamedTuple):
    """How it went.

    Attributes:
        requests: How many were sent.
        routes: Of the document.
        faults: What was wrong.
    """

    requests: int
    routes: int
    faults: list[str]


def fuzz_document(port: int, examples: int, seed: int, folder: Path) -> Fuzzed:
    """Send them.

    Args:
        port: Of the server.
        examples: Most of each route and phase.
        seed: Of chance.
        folder: Where the report is written.
    """
    folder = folder.resolve()
    path, configuration = folder / "schemathesis.json", folder / "schemathesis.toml"
    path.unlink(missing_ok=True)
    configuration.write_text(CONFIGURATION, encoding="utf-8")
    words = ("-n", str(examples), "--seed", str(seed), "--checks", CHECKS, "--no-color", "--continue-on-failure")
    report = ("--report", "json", "--report-json-path", str(path), "--generation-database", "none")
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"http://127.0.0.1:{port}/openapi.json",
        *words,
        *report,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if not path.exists():
        return Fuzzed(0, 0, [f"schemathesis did not run: {done.stdout[-1000:]}{done.stderr[-1000:]}"])
    found = json.loads(path.read_text(encoding="utf-8"))
    faults = [] if done.returncode == 0 else [f"schemathesis: {done.stdout[-3000:]}"]
    return Fuzzed(found["test_cases"]["generated"], found["operations"]["tested"], faults)
