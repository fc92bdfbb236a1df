"""Results of the GPU benchmark are kept part by part, whatever happens to the other parts."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from benchmarks.gpu.runner import run_parts, supervise
from benchmarks.gpu.store import DONE, FAILED, Kept, Store
from tests.benchmarks.dying_worker import KEY


def ignore(_: str) -> None:
    return


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    path, ran = tmp_path / "folder" / "gpu.json", list[str]()

    def part(name: str) -> str:
        ran.append(name)
        return name.upper()

    parts = {name: partial(part, name) for name in "ab"}
    assert run_parts(parts, Store(path, KEY), seconds=60, say=ignore)
    said: list[str] = []
    later = Store(path, KEY)
    assert run_parts({**parts, "c": lambda: [1]}, later, seconds=60, say=said.append)
    assert ran == ["a", "b"]
    assert [later.result(name) for name in "abc"] == ["A", "B", [1]]
    assert said == ["[1/3] a: there already", "[2/3] b: there already", "[3/3] c"]


def test_another_key_counts_as_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    Store(path, KEY).finish("a", 1, 0.0)
    other = Store(path, {"code": "2"})
    assert not other.is_done("a")
    assert other.result("a") is None
    other.finish("b", 2, 0.0)
    # Until it is measured anew the old result stays in the file.
    assert json.loads(path.read_text())["parts"]["a"]["result"] == 1


def test_a_part_that_fails_has_a_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "gpu.json", KEY)

    def broken() -> None:
        raise RuntimeError("no kernel image\nand a page of other words")

    assert run_parts({"a": broken, "b": lambda: 2}, store, seconds=60, say=ignore)
    assert (store.reason("a"), store.result("b")) == ("RuntimeError: no kernel image", 2)
    # The next run tries it again, this one does not.
    assert run_parts({"a": lambda: 1}, store, seconds=60, say=ignore, skip=["a"])
    assert store.state("a") == FAILED
    assert run_parts({"a": lambda: 1}, store, seconds=60, say=ignore)
    assert store.state("a") == DONE


def test_nothing_more_is_begun_on_a_device_that_does_not_answer(tmp_path: Path) -> None:
    store = Store(tmp_path / "gpu.json", KEY)
    parts = {"a": lambda: 1 // 0, "b": lambda: 2}
    assert not run_parts(parts, store, seconds=60, say=ignore, usable=lambda: False)
    assert [store.state(name) for name in "ab"] == [FAILED, ""]


def test_no_part_is_begun_when_the_time_is_over(tmp_path: Path) -> None:
    store, said = Store(tmp_path / "gpu.json", KEY), list[str]()
    assert run_parts({"a": lambda: 1}, store, seconds=-1, say=said.append)
    assert said == ["[1/1] a: the time is over; run the command again to go on"]
    assert not store.is_done("a")


@pytest.mark.parametrize("text", ["", "[]", '{"other": 1}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"is no file of results .* move it or name another"):
        Store(path, KEY)
    assert path.read_text() == text


def test_a_contender_that_breaks_the_device_is_left_out_from_then_on(tmp_path: Path) -> None:
    path, ran = tmp_path / "gpu.json", list[str]()

    def part(store: Store, name: str, breaks: str) -> list[str]:
        kept, found = Kept(store, name), list[str]()

        def run(contender: str) -> str:
            ran.append(f"{name}{contender}")
            if contender == breaks:
                raise RuntimeError("an illegal memory access")
            return contender.upper()

        for contender in kept.order("xyz"):
            found.append(kept.left_out(contender) or kept.entry(contender, partial(run, contender)))
        return found

    def process(breaks: str, usable: bool) -> tuple[Store, bool]:
        store = Store(path, KEY)
        parts = {name: partial(part, store, name, breaks) for name in "ab"}
        return store, run_parts(parts, store, seconds=60, say=ignore, usable=lambda: usable)

    assert not process("y", usable=False)[1]
    store, whole = process("", usable=True)
    reason = "left out, because in a: RuntimeError: an illegal memory access"
    assert whole
    assert [store.result(name) for name in "ab"] == [["X", reason, "Z"]] * 2
    assert ran == ["ax", "ay", "az", "bx", "bz"]  # x is kept from the process that was lost
    assert store.all_broken() == ["y"]
    store.forgive(["y"])
    store.reopen([])
    assert [Store(path, KEY).is_done(name) for name in "ab"] == [False, False]
    store, _ = process("", usable=True)
    assert [store.result(name) for name in "ab"] == [["X", "Y", "Z"]] * 2
    assert ran[5:] == ["ay", "by"]


def test_what_failed_before_goes_last(tmp_path: Path) -> None:
    store, ran = Store(tmp_path / "gpu.json", KEY), list[str]()
    store.begin_entry("a", "x")
    store.fail("a", "the time was over")
    assert Kept(store, "a").order("xyz") == ["y", "z", "x"]
    run_parts({name: partial(ran.append, name) for name in "abc"}, store, seconds=60, say=ignore)
    assert ran == ["b", "c", "a"]


def test_a_contender_that_kills_its_process_costs_no_part(tmp_path: Path) -> None:
    store = Store(tmp_path / "gpu.json", KEY)
    supervise([str(tmp_path / "gpu.json"), "--contenders"], store, 30, module="tests.benchmarks.dying_worker")
    reason = "left out, because in b: its process ended with status -9"
    assert [store.result(name) for name in "abc"] == [["x", "y"], ["x", reason], ["x", reason]]


def test_a_command_that_never_starts_is_not_started_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    supervise([], Store(tmp_path / "gpu.json", KEY), 30, module="tests.benchmarks.no_such_worker")
    assert capfd.readouterr().err.count("No module named") == 1


def test_a_process_that_dies_costs_one_part(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    store = Store(path, KEY)
    supervise([str(path)], store, 30, module="tests.benchmarks.dying_worker")
    assert store.reason("b") == "its process ended with status -9"
    assert store.result("a") != store.result("c")  # their processes


def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    store = Store(path, KEY)
    supervise([str(path), "--hang"], store, 2.5, module="tests.benchmarks.dying_worker")
    assert store.is_done("a")
    assert store.reason("c").startswith("not done when the time was over")
