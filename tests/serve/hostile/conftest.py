"""A server with small limits and short timeouts, and the judge of its answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.conftest import Live, start, stop
from tests.serve.hostile.judge import Judge

PLACES, PATIENCE = 4, 0.5
MIB = 2**20
JSON_LIMIT, WORK_LIMIT = MIB, 64 * MIB


@pytest.fixture(scope="session")
def judge(artifacts_dir: Path) -> Judge:
    return Judge(artifacts_dir)


@pytest.fixture(scope="package")
def strict(artifacts_dir: Path) -> Iterator[Live]:
    """A server with small limits, which must still stop with exit code 0."""
    limits = {"json-bytes": JSON_LIMIT, "work-bytes": WORK_LIMIT, "request-bytes": 4 * MIB, "requests": PLACES}
    words = [word for name, value in limits.items() for word in (f"--max-{name}", str(value))]
    server = start("--artifacts", artifacts_dir, "--client-timeout", str(PATIENCE), *words)
    yield server
    assert stop(server) == 0
