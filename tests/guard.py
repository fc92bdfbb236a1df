"""The fixture that ends what a test run leaves behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.processes import start_guard


@pytest.fixture(scope="session", autouse=sys.platform == "linux")
def guard() -> Iterator[subprocess.Popen[bytes]]:
    """Ends what the tests have started when the run ends, also when it is killed."""
    with start_guard() as process:
        yield process
