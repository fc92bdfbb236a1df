"""The simulation of replicas beside what can be computed by hand, and the table's bytes beside real requests."""

from __future__ import annotations

import json

import pytest

from benchmarks.common.report import RESULTS
from benchmarks.load.cases import Case, Size, inputs_of
from benchmarks.scaling import BOXES, IMAGES, Costs, Host, http_seconds, simulate, ways

COSTS = Costs(client=0.002, server=0.003, engine=0.005, nbytes=1e6)


def test_one_worker_waits_for_each_part_in_turn() -> None:
    # 2 + 3 + 5 ms, 1 MB at 100 MB/s: 10 ms, and 20 ms between an answer and the next request.
    assert simulate(COSTS, Host(8, 4, 1e8), 1, think=0.020) == pytest.approx(1 / 0.040)


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_engines_are_the_limit_where_cores_abound(replicas: int) -> None:
    assert simulate(COSTS, Host(64, replicas), 40) == pytest.approx(replicas / 0.005, rel=0.02)


def test_cores_are_the_limit_where_engines_abound() -> None:
    assert simulate(COSTS, Host(2, 16), 40) == pytest.approx(2 / 0.010, rel=0.02)


def test_engines_on_gpus_leave_the_cores_to_others() -> None:
    assert simulate(COSTS, Host(2, 16, engines_need_cores=False), 40) == pytest.approx(2 / 0.005, rel=0.02)


def test_the_network_is_the_limit_of_large_requests() -> None:
    assert simulate(COSTS, Host(64, 16, 5e7), 40) == pytest.approx(50, rel=0.02)


def test_http_processes_are_the_limit_of_short_calls() -> None:
    costs = Costs(0.0, 0.003, 0.001)
    assert simulate(costs, Host(64, 2, engines_need_cores=False), 40) == pytest.approx(2 / 0.003, rel=0.02)


def test_workers_that_think_long_are_not_slowed_down() -> None:
    assert simulate(COSTS, Host(8, 2), 4, think=1.0) == pytest.approx(4 / 1.010, rel=0.01)


def test_bytes_of_the_table_are_those_of_real_requests() -> None:
    size = Size(IMAGES, BOXES, 640, 640)
    raw, predictions, thin, apart = ways()
    assert raw.moved == sum(array.nbytes for array in inputs_of(Case("loss", size, "binary"), 0).values())
    inputs = inputs_of(Case("assigner", size, "binary"), 0)
    sent = sum(array.nbytes for array in inputs.values()) - inputs["anc_points"].nbytes
    assert predictions.moved == sent + 16 * 8400 * 13
    full = json.loads((RESULTS / "transport_thin.json").read_text(encoding="utf-8"))["batches"]["trees"]["full"]
    assert predictions.moved == pytest.approx(1e6 * full["megabytes"], rel=0.01)
    assert apart.moved < thin.moved < predictions.moved


def test_http_takes_what_the_transport_benchmark_measured() -> None:
    times = json.loads((RESULTS / "transport.json").read_text(encoding="utf-8"))["times"]
    assert http_seconds(1e6 * times["77 MB"]["megabytes"]) == pytest.approx(times["77 MB"]["infer_ms"] / 1000)
    # The one in between was measured, too, and lies near the line.
    assert http_seconds(1e6 * times["16 MB"]["megabytes"]) == pytest.approx(times["16 MB"]["infer_ms"] / 1000, rel=0.15)
