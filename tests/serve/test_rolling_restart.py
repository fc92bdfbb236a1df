"""Two servers behind a proxy are restarted under load and callers notice nothing: ``benchmarks.rolling_restart``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.load.cases import SMALL, TINY, Case
from benchmarks.rolling_restart import roll


@pytest.mark.skipif(sys.platform != "linux", reason="its clients are forked")
def test_no_request_fails(assigner_dir: Path) -> None:
    # The assigner takes any number of classes, so these fit the small models of the tests.
    cases = [Case("assigner", TINY, "binary"), Case("assigner", SMALL, "fp16"), Case("assigner", SMALL, "gzip")]
    results = roll(assigner_dir, cases, rounds=1, connections=4, kind="python")
    assert results["failed"] == []
    assert results["restarts"] == 2
    assert results["requests"] > 50
