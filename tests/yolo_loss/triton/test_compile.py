"""That the kernels compile for GPUs, and keep their numbers in registers. In a process without the interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.yolo_loss.triton.cases import interpreted

pytestmark = interpreted
MODULE = "tests.yolo_loss.triton.compiled"


@pytest.mark.parametrize("variant", ["float32", "float16", "topk2", "weighted", "assigner"])
def test_kernels_compile_without_spills(variant: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, "-W", "ignore", "-m", MODULE, "--json", "--only", variant]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert {result["capability"] for result in results} == {80, 90, 120}
    for result in results:
        assert result["spilled"] == 0, result
        assert 0 < result["registers"] <= 255, result
