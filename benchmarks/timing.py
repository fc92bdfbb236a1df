"""Contenders in turn, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.contenders import STRIDES, Contender, Setting, contenders, formulations
from yolo_assigner.export.samples import sample_assigner_inputs
from yolo_loss.assignment.anchor_grid import candidate_ranges
from yolo_loss.assignment.params import enlarge


def settle_allocator() -> None:
    """Let the C library keep freed memory, as it does in any process that has run for a while.

    glibc takes its thresholds from the blocks that it has seen freed. In a fresh process every large temporary is new
    memory from the system, page by page, and the first contender to free a large block would help those after it.
    """
    torch.zeros(31 * 2**18)


def take_turns(runs: Mapping[str, Contender], turns: int) -> dict[str, list[float]]:
    """Seconds of each call; one round before the first does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            seconds = clock(run)
            if turn:
                times[name].append(seconds)
    return times


def clock(run: Contender) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the ratios, turn by turn."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def measure(setting: Setting, turns: int) -> dict[str, Any]:
    """Medians in milliseconds, and the median of the reference's time over each contender's, turn by turn."""
    times = take_turns(contenders(setting), turns)
    ratios = {name: median_ratio(times["reference"], values) for name, values in times.items()}
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    return {**setting._asdict(), "milliseconds": medians, "times_faster": ratios}


def compare_formulations(setting: Setting, turns: int) -> dict[str, Any]:
    """How many times the sparse formulation's time the dense one takes, in torch and exported."""
    times = take_turns(formulations(setting), turns)
    ratios = {how: median_ratio(times[f"{how} dense"], times[f"{how} sparse"]) for how in ("torch", "onnx")}
    return {**setting._asdict(), "dense_over_sparse": ratios}


def against_pairs(slots: int, turns: int) -> dict[str, Any]:
    """Time of the assignment of 16 images with so many boxes each, and P, its candidate pairs.

    The least of the turns and not their median: a curve is to show the work, and on a shared machine a disturbance
    is as long as a call.
    """
    setting = Setting("assigner", 16, slots)
    inputs = sample_assigner_inputs(setting.case, STRIDES, seed=1)
    boxes, valid = enlarge(inputs[4], STRIDES[1]), inputs[5].squeeze(-1).bool()
    pairs = int(candidate_ranges(inputs[2], boxes, valid, 1e-9).length.sum())
    times = take_turns(contenders(setting), turns)
    return {
        "slots": slots,
        "pairs": pairs,
        "milliseconds": {name: 1000 * min(values) for name, values in times.items()},
    }
