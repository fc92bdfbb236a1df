"""The matrix of runtimes itself: that it runs here, and that it sees what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import KINDS
from tests.runtimes.__main__ import Model, prepare
from tests.runtimes.environments import HERE, Runtime, SkippedError, command
from tests.runtimes.process import run_batches
from tests.runtimes.table import BEGIN, END, Outcome, write_table

RUN_HERE = [sys.executable, str(HERE / "run_model.py"), "onnxruntime"]
RUNTIME = Runtime("onnxruntime", "1.2.3")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folder", ["artifacts_dir", "dense_dir"])
def test_every_batch_is_right_in_this_runtime(
    kind: str, folder: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path: Path = request.getfixturevalue(folder) / f"{kind}.onnx"
    model, outputs = run_here(path, tmp_path)
    assert {name: model.judge.differences(batch, outputs[name]) for name, batch in model.batches.items()} == {
        name: [] for name in model.batches
    }


def run_here(path: Path, folder: Path) -> tuple[Model, dict[str, dict[str, Any]]]:
    model = prepare(path, folder)
    reasons = run_batches(RUN_HERE, HERE, path, [model.folder / name for name in model.batches], folder / "out")
    assert reasons == dict.fromkeys(model.batches)
    return model, {name: load_file(folder / "out" / name) for name in model.batches}


@pytest.fixture(scope="module")
def ran(artifacts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, dict[str, dict[str, Any]]]:
    return run_here(artifacts_dir / "loss.onnx", tmp_path_factory.mktemp("ran"))


def spoiled(array: Any, value: Any) -> Any:
    changed = array.copy()
    changed.flat[0] = value
    return changed


@pytest.mark.parametrize(
    ("output", "change", "words"),
    [
        ("fg_mask", np.logical_not, "differ"),
        ("target_labels", lambda labels: labels + 1, "differ"),
        ("loss", lambda loss: loss * np.float32(1 + 3e-6), "of itself"),
        ("image_sums", lambda sums: spoiled(sums, sums.flat[0] + 1e-4 * abs(sums).max()), "of the largest"),
        ("image_sums", lambda sums: spoiled(sums, np.nan), "should be NaN and are not, 1 are and should not"),
        ("image_sums", lambda sums: spoiled(sums, -np.inf), "should be -inf and are not, 1 are and should not"),
        ("loss_items", lambda items: items[:2], "shape"),
    ],
)
def test_a_difference_is_found(
    ran: tuple[Model, dict[str, dict[str, Any]]], output: str, change: Callable[[Any], Any], words: str
) -> None:
    model, outputs = ran
    name, batch = next(iter(model.batches.items()))
    got = {**outputs[name], output: change(outputs[name][output])}
    (fault,) = model.judge.differences(batch, got)
    assert fault.startswith(f"{output}: ")
    assert words in fault


def test_a_crash_ends_one_batch_only(tmp_path: Path) -> None:
    # A real process that really dies, as some runtimes do in an operator.
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, signal, sys\n"
        "for batch in map(os.path.basename, sys.argv[3:]):\n"
        "    print(json.dumps({'batch': batch}), flush=True)\n"
        "    if batch == 'b': os.kill(os.getpid(), signal.SIGFPE)\n"
        "    if batch == 'c': print(json.dumps({'batch': batch, 'error': 'refused'}), flush=True)\n"
    )
    batches = [tmp_path / name for name in "abcd"]
    reasons = run_batches([sys.executable, str(program)], tmp_path, tmp_path / "model", batches, tmp_path / "out")
    assert reasons == {"a": None, "b": "crashed with SIGFPE", "c": "raised: refused", "d": None}


def test_a_model_that_does_not_load_is_named(tmp_path: Path) -> None:
    reasons = run_batches(RUN_HERE, HERE, tmp_path / "missing.onnx", [tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert list(reasons) == ["a", "b"]
    assert all(reason is not None and reason.startswith("did not load: ") for reason in reasons.values())
    assert "missing.onnx" in str(reasons["a"])


def test_what_cannot_be_installed_is_skipped_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SkippedError, match=r"^installing failed: .*onnxruntime==1\.2\.3"):
        command(RUNTIME, tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SkippedError, match=r"^there is no npm here$"):
        command(Runtime("onnxruntime-web", "1.2.3"), tmp_path)


def test_the_table_replaces_what_is_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    right = Outcome(RUNTIME, "loss", "sparse", "tied", "equal boxes", ())
    for _ in range(2):
        write_table(page, [right, right._replace(implementation="dense", faults=("loss: off by 1",))])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| onnxruntime | 1.2.3 | `loss` |  |  | 1 of 2 |  |\n" in text
    assert "* onnxruntime 1.2.3, `loss`, dense, equal boxes: loss\n" in text
    assert "old" not in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="has no lines"):
        write_table(page, [right])
