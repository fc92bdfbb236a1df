"""How far a model's peak memory rises in ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolo_assigner.serve.wire.dtypes import Array

# The peak is that of the memory map: getrusage's also counts what the parent had when it forked.
MEASURE = """
import pathlib, sys
import numpy as np, onnxruntime
def kibibytes(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
inputs = dict(np.load(sys.argv[2]))
pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = kibibytes("VmRSS")
session.run([sys.argv[3]], inputs)
print(1024 * (kibibytes("VmHWM") - before))
"""


def peak_growth(model: Path, inputs: Mapping[str, Array], output: str, folder: Path) -> int:
    """Bytes by which one call for one output raises the peak, on one thread; Linux only."""
    kept: dict[str, Any] = dict(inputs)
    np.savez(folder / "inputs.npz", **kept)
    command = [sys.executable, "-c", MEASURE, str(model), str(folder / "inputs.npz"), output]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
