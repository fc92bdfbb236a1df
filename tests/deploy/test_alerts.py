"""Prometheus' own program reads its configuration and tries the alert rules.

That the server has the metrics which they name, and of that type, is for ``tests/serve/test_operation.py``.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.serve.conftest import ROOT


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed; it comes with Prometheus")
@pytest.mark.parametrize(
    "words",
    [
        ("check", "config", "deploy/prometheus.yml"),
        ("check", "rules", "deploy/prometheus-alerts.yml"),
        ("test", "rules", "tests/deploy/alerts.test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(words: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout + done.stderr


def test_compose_gives_prometheus_its_rules() -> None:
    (rules,) = (
        line.strip(" -") for line in (ROOT / "deploy/prometheus.yml").read_text().splitlines() if "alerts" in line
    )
    mount = f"./deploy/{rules}:/etc/prometheus/{rules}:ro"
    assert mount in (ROOT / "compose.yaml").read_text()
    assert (ROOT / "deploy" / rules).is_file()
