"""Peak memory of one call in a fresh process: ``python -m benchmarks.memory SETTING NAME``. Linux only."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.inputs import Setting
from benchmarks.contenders import contenders

MIB = 2**20


def memory_row(setting: Setting) -> dict[str, Any]:
    """Peak growth of the reference, torch and ONNX, and the size of what a call returns, in MiB."""
    names = [name for name in ("reference", "torch", "onnx") if setting.task != "loss+grad" or name != "onnx"]
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", json.dumps(setting)]
    answers = {
        name: json.loads(subprocess.run([*words, name], capture_output=True, text=True, check=True).stdout)
        for name in names
    }
    return {
        **setting._asdict(),
        "MiB": {name: answer["grown"] for name, answer in answers.items()},
        "returned": answers["torch"]["returned"],
    }


def peak_growth(setting: Setting, name: str) -> dict[str, float]:
    """Growth of the process's peak in one call, and the size of what it returns, in MiB."""
    # A call on a small input first, so that what is loaded and compiled on first use does not count.
    contenders(setting._replace(batch=1, slots=1, image=64), [name])[name]()
    grown, result = growth(contenders(setting, [name])[name])
    return {"grown": grown, "returned": sum(_bytes(result)) / MIB}


def growth(run: Callable[[], object]) -> tuple[float, object]:
    """How far a call raises this process's peak over what it holds now, in MiB; and what the call returns."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    before = _status("VmRSS")
    result = run()
    return (_status("VmHWM") - before) / 1024, result


def _bytes(result: object) -> Iterable[int]:
    parts = result if isinstance(result, tuple) else ()
    return (part.numel() * part.element_size() for part in parts if isinstance(part, Tensor))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps(peak_growth(Setting(*json.loads(sys.argv[1])), sys.argv[2])))
