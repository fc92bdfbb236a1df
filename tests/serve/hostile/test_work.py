"""The memory estimate of a request: never too low, and not much too high for ordinary boxes and points."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import booleans, floats, integers, lists, sampled_from, tuples

from tests.exports import OTHER_ASSIGNER, exported
from tests.serve.conftest import Live, assigner_inputs, binary_rows, graph_inputs, loss_inputs
from tests.serve.hostile.conftest import WORK_LIMIT
from tests.serve.peak import peak_growth
from yolo_assigner.export.contract import find_contracts
from yolo_assigner.serve.detection.grid import anchor_points
from yolo_assigner.serve.errors import TooLargeError
from yolo_assigner.serve.inference.memory_estimate import Grid, Points, check_memory, estimate_memory, memory_bound
from yolo_assigner.serve.wire.dtypes import Array

GIB = 2**30
sides = integers(1, 40)
corner = floats(-50, 400, width=32) | sampled_from([-np.inf, np.inf, 0.0, 4.0, 12.0, 20.0])


def inside(points: Array, corners: Array) -> int:
    """Count pairs one by one; points on the edge count."""
    return sum(bool(x1 <= x <= x2 and y1 <= y <= y2) for x1, y1, x2, y2 in corners.tolist() for x, y in points.tolist())


def boxes_of(values: list[tuple[float, float, float, float]]) -> Array:
    corners = np.array(values, np.float64).reshape(-1, 4)
    return corners[(corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])]


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(sides, sides, lists(tuples(corner, corner, corner, corner), max_size=4))
def test_pairs_of_a_grid_are_counted_exactly(rows: int, columns: int, values: list[tuple[float, ...]]) -> None:
    corners = boxes_of(values)  # type: ignore[arg-type]
    levels = [(4 * rows, 4 * columns, 8), (2 * rows, 2 * columns, 16), (rows, columns, 32)]
    points = anchor_points((32 * rows, 32 * columns), [8, 16, 32])[:4000]
    if len(points) == sum(r * c for r, c, _ in levels):
        assert Grid(levels).count(corners)[0] == inside(points, corners)


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(
    lists(tuples(floats(width=32), floats(width=32)), max_size=30),
    lists(tuples(corner, corner, corner, corner), max_size=4),
    booleans(),
)
def test_pairs_of_any_points_are_never_fewer(
    values: list[tuple[float, float]], boxes: list[tuple[float, ...]], sort: bool
) -> None:
    points = np.array(sorted(values) if sort else values, np.float32).reshape(-1, 2)
    corners = boxes_of(boxes)  # type: ignore[arg-type]
    assert Points(points).count(corners)[0] >= inside(points, corners)


def test_an_ordinary_pyramid_is_not_overrated() -> None:
    points = anchor_points((640, 640), [8, 16, 32])
    grid = Grid([(80, 80, 8), (40, 40, 16), (20, 20, 32)])
    low = np.random.default_rng(0).uniform(0, 500, (200, 2))
    corners = np.concatenate((low, low + 100), axis=1)
    exact, rows = grid.count(corners)
    about, crossed = Points(points).count(corners)
    assert exact <= about < 1.4 * exact
    assert rows <= crossed < 1.4 * rows
    assert Points(points).rows == grid.rows


def test_nothing_asks_for_more_than_the_most(artifacts_dir: Path, dense_dir: Path) -> None:
    """A request whose bound is below the limit is admitted without looking at its boxes."""
    for folder in (artifacts_dir, dense_dir):
        for _, contract in find_contracts(folder):
            inputs = (assigner_inputs if contract.kind == "assigner" else loss_inputs)(images=2, slots=7)
            inputs["gt_bboxes"][:] = (-np.inf, -np.inf, np.inf, np.inf)
            assert estimate_memory(contract, inputs).nbytes <= memory_bound(contract, inputs)


def bomb(model: str, slots: int) -> dict[str, Array]:
    """Inputs of about a megabyte in which every slot has a box around all points."""
    make = assigner_inputs if model == "assigner" else loss_inputs
    inputs = make(images=1, slots=slots, side=64)
    inputs["gt_bboxes"][:] = (0, 0, 64, 64)
    return inputs


@pytest.mark.parametrize("model", ["assigner", "loss", "loss_grad"])
def test_index_bombs(strict: Live, model: str) -> None:
    rows, blob = binary_rows(bomb(model, 30_000))
    reply = strict.infer(model, {"inputs": rows}, blob)
    assert reply.status == 413
    for word in ("1 images x 30000 slots x 84 anchor points", str(WORK_LIMIT), "--max-work-bytes"):
        assert word in reply.error
    rows, blob = binary_rows(bomb(model, 300))
    assert strict.infer(model, {"inputs": rows}, blob).status == 200


def test_a_dense_model_counts_all_pairs(dense_dir: Path) -> None:
    (contract,) = (contract for _, contract in find_contracts(dense_dir) if contract.name == "loss")
    inputs = bomb("loss", 30_000)
    inputs["gt_bboxes"][:] = 0  # no candidates, but the dense implementation compares all pairs
    assert estimate_memory(contract, inputs).pairs == 30_001 * 84
    with pytest.raises(TooLargeError, match="pairs to compare"):
        check_memory(contract, inputs, WORK_LIMIT)
    check_memory(contract, inputs, GIB)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system counts in other units")
def test_a_large_topk_is_counted(tmp_path: Path) -> None:
    """Four hundred small boxes have few candidates, whatever topk allows."""
    ((path, contract),) = find_contracts(exported("assigner", "sparse", **OTHER_ASSIGNER))
    inputs = graph_inputs(images=1, slots=400, side=640)
    low = np.random.default_rng(0).uniform(0, 500, (1, 400, 2))
    inputs["gt_bboxes"] = np.concatenate((low, low + 60), axis=2).astype(np.float32)
    inputs["mask_gt"][:] = True
    taken = peak_growth(path, inputs, "fg_mask", tmp_path)
    estimate = estimate_memory(contract, inputs).nbytes
    usual = dataclasses.replace(contract, hyperparameters={**contract.hyperparameters, "topk": 10})
    assert taken < 1.5 * estimate
    assert estimate == estimate_memory(usual, inputs).nbytes + (100_000 - 10) * 64


def test_a_large_topk_of_a_dense_model_is_counted(dense_dir: Path) -> None:
    (contract,) = (contract for _, contract in find_contracts(dense_dir) if contract.name == "loss")
    inputs = bomb("loss", 300)
    usual = estimate_memory(contract, inputs).nbytes
    many = dataclasses.replace(contract, hyperparameters={**contract.hyperparameters, "topk": 10**9})
    # topk counts at most as many candidates as there are anchor points.
    assert estimate_memory(many, inputs).nbytes == usual + 301 * (84 - 10) * 12
