"""Results of the GPU benchmark are kept unit by unit, whatever happens to others, and beside those of other code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import complete, supervise, work
from benchmarks.gpu.results import SOURCES, STARTED, Entry, Results, code_hash
from benchmarks.gpu.units import Unit
from tests.benchmarks.dying_worker import KEY
from yolo_assigner.serve.inference.runners.base import RunnerError

HOST = torch.device("cpu")


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    path, ran = tmp_path / "folder" / "gpu.json", list[str]()

    def unit(name: str) -> Unit:
        def run() -> Entry:
            ran.append(name)
            return {"number": len(ran)}

        return Unit(name, "", run)

    assert work([unit("a"), unit("b")], Results(path, KEY), HOST, 60) == 0
    later = Results(path, KEY)
    work([unit("a"), unit("b"), unit("c")], later, HOST, 60)
    assert ran == ["a", "b", "c"]
    assert [later.entries[name]["number"] for name in "abc"] == [1, 2, 3]
    work([unit("d")], later, HOST, -1)  # the time is over
    assert ran == ["a", "b", "c"]


def test_another_package_set_adds_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    Results(path, KEY).keep("a", {"ms": 1.0})
    other = Results(path, {**KEY, "versions": {"onnxruntime": "2"}})
    assert other.entries == {}
    other.keep("a", {"ms": 2.0})
    assert list(other.others.values()) == [{"a": {"ms": 1.0}}]
    assert Results(path, KEY).entries == {"a": {"ms": 1.0}}
    assert [run["entries"]["a"]["ms"] for run in json.loads(path.read_text())["runs"]] == [1.0, 2.0]


def test_a_unit_that_fails_has_a_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    def missing() -> Entry:
        raise RunnerError("not installed")

    def broken() -> Entry:
        raise RuntimeError("no kernel image\nand a page of other words")

    results = Results(tmp_path / "gpu.json", KEY)
    todo = [Unit("a", "x", broken), Unit("b", "x", missing), Unit("c", "x", lambda: {"ms": 1.0})]
    assert work(todo, results, HOST, 60) == 0
    assert results.entries["a"]["reason"] == "RuntimeError: no kernel image"
    assert not complete(results, todo)
    assert complete(results, todo[1:])
    assert not complete(results, [*todo[1:], Unit("d", "", missing)])  # has not run
    results.retry([])
    assert list(results.entries) == ["c"]


def test_a_comparison_beyond_its_limit_is_not_complete(tmp_path: Path) -> None:
    results, unit = Results(tmp_path / "gpu.json", KEY), Unit("a", "", dict)
    results.keep("a", {"checks": [{"ok": True}, {"ok": False}]})
    assert not complete(results, [unit])


def test_nothing_more_is_begun_on_a_device_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.__main__.usable", lambda _: False)
    results = Results(tmp_path / "gpu.json", KEY)
    todo = [Unit("a", "y", lambda: {"ms": 1 // 0}), Unit("b", "y", dict), Unit("c", "x", lambda: {"ms": 2.0})]
    assert work(todo, results, HOST, 60) == 3
    assert results.broken() == {"y": "a"}
    assert work(todo, results, HOST, 60) == 0  # the next process
    assert results.entries["b"] == {"contender": "y", "reason": "left out, because of a"}
    assert results.entries["c"]["ms"] == 2.0
    results.retry([])
    assert list(results.entries) == ["a", "c"]
    results.retry(["y"])
    assert list(results.entries) == ["c"]


def test_a_contender_that_kills_or_hangs_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    results = Results(path, KEY)
    supervise([str(path)], results, 120, module="tests.benchmarks.dying_worker")
    reasons = {name: entry.get("reason", "") for name, entry in results.entries.items()}
    assert reasons == {
        **{"a": "", "b": STARTED, "c": "left out, because of b"},
        **{"d": STARTED, "e": ""},
    }
    assert results.entries["a"]["process"] != results.entries["e"]["process"]


def test_a_unit_that_lack_of_time_ended_is_to_run_again(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    results = Results(path, KEY)
    results.keep("a", {})
    results.begin("d", "z")
    assert Results(path, KEY).broken() == {"z": "d"}  # had its process died now
    supervise([str(path)], results, 0, module="tests.benchmarks.dying_worker")
    assert Results(path, KEY).entries == results.entries == {"a": {}}


def test_a_command_that_never_starts_is_not_started_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    supervise([], Results(tmp_path / "gpu.json", KEY), 30, module="tests.benchmarks.no_such_worker")
    assert capfd.readouterr().err.count("No module named") == 1


@pytest.mark.parametrize("text", ["", "[]", '{"other": 1}', '{"runs": [{}]}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"is no file of results .* move it or name another"):
        Results(path, KEY)
    assert path.read_text() == text


def test_code_that_decides_figures_is_in_the_key(tmp_path: Path) -> None:
    assert len(code_hash()) == 12
    for source in SOURCES:
        path = tmp_path / (source if source.endswith(".py") else f"{source}/module.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {source}\n")
    hashes = {code_hash(tmp_path)}
    for source in SOURCES:
        path = tmp_path / source
        (path / "module.py" if path.is_dir() else path).write_text("# other\n")
        hashes.add(code_hash(tmp_path))
    assert len(hashes) == len(SOURCES) + 1
    (tmp_path / SOURCES[0]).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=SOURCES[0]):
        code_hash(tmp_path)
