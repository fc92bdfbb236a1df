"""How far a model's peak memory rises in ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolo_assigner.serve.wire.dtypes import Array

# Not getrusage's ru_maxrss, which begins with the parent's size.
MEASURE = """
import sys
import numpy as np, onnxruntime
def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
inputs = dict(np.load(sys.argv[2]))
before = peak()
session.run([sys.argv[3]], inputs)
print(peak() - before)
"""


def peak_growth(model: Path, inputs: Mapping[str, Array], output: str, folder: Path) -> int:
    """Bytes by which one call for one output raises the peak, on one thread; Linux only."""
    kept: dict[str, Any] = dict(inputs)
    np.savez(folder / "inputs.npz", **kept)
    command = [sys.executable, "-c", MEASURE, str(model), str(folder / "inputs.npz"), output]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
