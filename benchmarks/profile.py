"""Time of one call by operator: ``python -m benchmarks.profile loss 16 30 --in onnx``.

Shares are of the operators' own time, without the interpreter's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx.utils
import onnxruntime
import torch

from benchmarks.common.inputs import TASKS, Setting
from benchmarks.common.report import table
from benchmarks.contenders import OUTPUTS, PRESET, contenders, onnx_feed, settle_allocator
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.to_onnx.exporter import export_onnx

CALLS = 10


def main() -> int:
    """Print a table of the costliest operators."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("batch", type=int)
    parser.add_argument("slots", type=int)
    parser.add_argument("--image", type=int, default=640)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--in", dest="where", default="torch", choices=("torch", "compile", "onnx", "reference"))
    parser.add_argument("--rows", type=int, default=12)
    options = parser.parse_args()
    setting = Setting(options.task, options.batch, options.slots, options.image, options.classes)
    if setting.task == "loss+grad" and options.where == "onnx":
        parser.error("gradients are not exported; profile loss+grad in torch, compile or reference")
    settle_allocator()
    costs, calls = in_onnx(setting) if options.where == "onnx" else in_torch(setting, options.where)
    total = sum(costs.values())
    rows = ((name, calls[name], f"{100 * cost / total:.0f} %") for name, cost in costs.most_common(options.rows))
    print(f"{setting.task} {setting.batch} x {setting.slots}, {options.where}\n")
    print(table(("operator", "calls", "share"), rows))
    return 0


def in_torch(setting: Setting, name: str) -> tuple[Counter[str], Counter[str]]:
    """Own time of each operator in torch, and its number of uses per call."""
    run = contenders(setting, [name])[name]
    for _ in range(3):
        run()
    with torch.profiler.profile() as profile:
        for _ in range(CALLS):
            run()
    events = profile.key_averages()
    return (
        Counter({event.key: event.self_cpu_time_total for event in events}),
        Counter({event.key: event.count // CALLS for event in events}),
    )


def in_onnx(setting: Setting) -> tuple[Counter[str], Counter[str]]:
    """The same for the exported model, pruned to the outputs of the benchmark."""
    with TemporaryDirectory() as folder:
        path, _ = export_onnx(setting.task, Hyperparameters(num_classes=setting.classes, preset=PRESET), Path(folder))
        feed = onnx_feed(setting)
        pruned = str(path.with_name("pruned.onnx"))
        onnx.utils.extract_model(str(path), pruned, list(feed), list(OUTPUTS[setting.task]))
        settings = onnxruntime.SessionOptions()
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(pruned, settings, providers=["CPUExecutionProvider"])
        for _ in range(CALLS):
            session.run(None, feed)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    costs, calls = Counter[str](), Counter[str]()
    for event in events:
        # The time of a Scan is that of the operators inside it.
        is_operator = event.get("cat") == "Node" and event["name"].endswith("kernel_time")
        if is_operator and event["args"]["op_name"] != "Scan":
            costs[event["args"]["op_name"]] += event["dur"]
            calls[event["args"]["op_name"]] += 1
    return costs, Counter({name: count // CALLS for name, count in calls.items()})


if __name__ == "__main__":
    sys.exit(main())
