"""The simulation of replicas beside what can be computed by hand, and the table's bytes beside real requests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.common.report import RESULTS
from benchmarks.load.cases import Case, Size, inputs_of
from benchmarks.scaling import (
    BOXES,
    IMAGES,
    Costs,
    Host,
    http_seconds,
    job_table,
    limits_table,
    main,
    replace_tables,
    simulate,
    ways,
)
from tests.docs.markdown import DOCS

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
    raw, predictions, thin, *apart = ways()
    assert raw.moved == sum(array.nbytes for array in inputs_of(Case("loss", size, "binary"), 0).values())
    inputs = inputs_of(Case("assigner", size, "binary"), 0)
    sent = sum(array.nbytes for array in inputs.values()) - inputs["anc_points"].nbytes
    assert predictions.moved == sent + 16 * 8400 * 13
    full = json.loads((RESULTS / "transport_thin.json").read_text(encoding="utf-8"))["batches"]["trees"]["full"]
    assert predictions.moved == pytest.approx(1e6 * full["megabytes"], rel=0.01)
    assert thin.moved < predictions.moved
    assert all(one.moved < thin.moved for one in apart)


def test_http_takes_what_the_transport_benchmark_measured() -> None:
    times = json.loads((RESULTS / "transport.json").read_text(encoding="utf-8"))["times"]
    assert http_seconds(1e6 * times["77 MB"]["megabytes"]) == pytest.approx(times["77 MB"]["infer_ms"] / 1000)
    # The one in between was measured, too, and lies near the line.
    assert http_seconds(1e6 * times["16 MB"]["megabytes"]) == pytest.approx(times["16 MB"]["infer_ms"] / 1000, rel=0.15)


def test_the_page_has_the_tables_of_the_committed_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else: ``python -m benchmarks.scaling --only table --page docs/scaling.md``."""
    (page,) = (page for page in DOCS if page.name == "scaling.md")
    copy = tmp_path / page.name
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    host = next(line for line in copy.read_text(encoding="utf-8").splitlines() if "| 1 GPU" in line)
    monkeypatch.setattr(scaling, "host_table", lambda: host)  # it takes seconds to simulate
    monkeypatch.setattr(sys, "argv", ["scaling", "--only", "table", "--page", str(copy)])
    assert main() == 0
    written = copy.read_text(encoding="utf-8")
    assert written.partition(host)[0] == page.read_text(encoding="utf-8").partition(host)[0]
    assert all(one in written for one in capsys.readouterr().out.split("\n\n"))
    assert job_table() in written
    assert limits_table() in written


def test_a_page_without_such_a_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("| a | b |\n| --- | --- |\n| 1 | 2 |\n\nText.\n")
    replace_tables(page, ["| a | b |\n| --- | --- |\n| 3 | 4 |\n| 5 | 6 |"])
    assert page.read_text() == "| a | b |\n| --- | --- |\n| 3 | 4 |\n| 5 | 6 |\n\nText.\n"
    with pytest.raises(ValueError, match="0 tables"):
        replace_tables(page, ["| a | c |\n| --- | --- |"])
