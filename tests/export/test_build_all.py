"""`yolo-assigner export all`: what it builds, what it keeps, and what happens when a build fails or is killed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from importlib.metadata import version
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from tests.exports import made_once
from yolo_assigner.export import cli
from yolo_assigner.export.contract import find_contracts
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.repository.config import load_config
from yolo_assigner.export.repository.plan import OnnxTarget, plan_targets
from yolo_assigner.export.repository.processes import Processes
from yolo_assigner.export.repository.state import (
    LIBRARIES,
    PACKAGES,
    SOURCES,
    STATE_FOLDER,
    open_repository,
    source_hash,
)
from yolo_assigner.export.to_tensorrt.library import load_library
from yolo_assigner.serve.inference.loading import open_artifacts
from yolo_assigner.serve.inference.runners.choice import RunnerOptions

SPARSE, DENSE = "assigner-c2.onnx", "assigner-c2-dense.onnx"
ENGINE = "assigner-c2-dense.tensorrt-rtx.fp32.engine"
ROOT = Path(__file__).parents[2]
CONFIG = """
[profiles]
small = ["B=1,2,4", "M=0,4,8", "imgsz=64"]
[[models]]
kinds = ["assigner"]
num_classes = [2]
hyperparameters = { topk = 9 }
[[models]]
kinds = ["assigner"]
num_classes = [2]
targets = ["tensorrt-rtx"]
"""
Built = Callable[..., tuple[int, dict[str, str]]]


@pytest.fixture(scope="module")
def built() -> Path:
    """A repository with a sparse model, a dense one and its engine, built once for each state of code and libraries."""

    def build(folder: Path) -> None:
        (folder / "build.toml").write_text(CONFIG, encoding="utf-8")
        assert cli.main(["all", "--config", str(folder / "build.toml"), "--out", str(folder / "repository")]) == 0

    versions = [*map(version, LIBRARIES), load_library("tensorrt-rtx").__version__]
    words = [CONFIG, source_hash(SOURCES), *versions]
    return made_once(f"built-{hashlib.sha256(repr(words).encode()).hexdigest()[:16]}", build) / "repository"


@pytest.fixture
def repository(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may change, with its configuration file beside it."""
    (tmp_path / "build.toml").write_text(f'out = "repository"\n{CONFIG}', encoding="utf-8")
    return Path(shutil.copytree(built, tmp_path / "repository"))


@pytest.fixture
def rebuild(repository: Path, capsys: pytest.CaptureFixture[str]) -> Built:
    """Run the command on the copy; returns its exit code and the state of each artefact, read from its table."""

    def run(*words: str, config: str = CONFIG) -> tuple[int, dict[str, str]]:
        path = repository.with_name("build.toml")
        path.write_text(f'out = "repository"\n{config}', encoding="utf-8")
        code = cli.main(["all", "--config", str(path), *words])
        rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        return code, {row[0].removeprefix("| "): " ".join([row[1], *row[3:]]).rstrip(" |") for row in rows[2:]}

    return run


def times(repository: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in repository.rglob("*.*") if path.is_file()}


def test_the_repository_can_be_verified_and_served(built: Path) -> None:
    assert {contract.name for _, contract in find_contracts(built)} == {"assigner-c2", "assigner-c2-dense"}
    assert cli.main(["verify", str(built)]) == 0
    # The service takes the engine for the model that it was built from, and ONNX Runtime without a GPU.
    models = open_artifacts(built, RunnerOptions("auto")).models
    assert {name: ENGINE in model.runner.description for name, model in models.items()} == {
        "assigner-c2": False,
        "assigner-c2-dense": True,
    }


def test_a_second_run_builds_nothing(repository: Path, rebuild: Built) -> None:
    before = times(repository)
    assert rebuild() == (0, dict.fromkeys((SPARSE, DENSE, ENGINE), "up to date"))
    assert times(repository) == before


@pytest.mark.parametrize("file", [ENGINE, f"{ENGINE}.json"])
def test_a_truncated_artefact_is_rebuilt(repository: Path, rebuild: Built, file: str) -> None:
    path = repository / "engines" / file
    path.write_bytes(path.read_bytes()[:-100])
    assert rebuild() == (0, {SPARSE: "up to date", DENSE: "up to date", ENGINE: "built"})
    assert rebuild()[1][ENGINE] == "up to date"


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("topk = 9", "topk = 8", {SPARSE}),
        # A default, spelled out or not, is the same model.
        ("topk = 9", 'topk = 9, alpha = 0.5, preset = "yolov8"', set()),
        ("targets", "hyperparameters = { topk = 9 }\ntargets", {DENSE}),
        ("targets", 'compute_capabilities = ["8.9"]\ntargets', {ENGINE}),
        ("imgsz=64", "imgsz=96", {ENGINE}),
    ],
)
def test_only_what_a_change_touches_is_out_of_date(
    repository: Path, tmp_path: Path, old: str, new: str, changed: set[str]
) -> None:
    path = tmp_path / "build.toml"
    path.write_text(CONFIG.replace(old, new), encoding="utf-8")
    with open_repository(repository) as state:
        stale = {
            target.label for target in plan_targets(load_config(path)) if not state.has(target, state.recipe(target))
        }
    # Only the change itself counts here: an engine is examined once its model is built, and follows its hash.
    assert stale == changed


def test_a_change_of_code_or_libraries_puts_all_out_of_date(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = plan_targets(load_config(tmp_path / "build.toml"))
    monkeypatch.setattr("yolo_assigner.export.repository.state.version", lambda _: "2.0")
    with open_repository(repository) as state:
        assert [target.label for target in targets if state.has(target, state.recipe(target))] == [ENGINE]
    monkeypatch.setattr("yolo_assigner.export.repository.state.source_hash", lambda _: "other code")
    with open_repository(repository) as state:
        assert [target.label for target in targets if state.has(target, state.recipe(target))] == []


def test_a_change_in_any_package_changes_the_hash_of_the_code(tmp_path: Path) -> None:
    assert source_hash(SOURCES) == source_hash(SOURCES)
    files = [tmp_path / package / "part" / "module.py" for package in PACKAGES]
    for path in files:
        with pytest.raises(ValueError, match="holds no source files to hash"):
            source_hash(tmp_path)
        path.parent.mkdir(parents=True)
        path.write_text("x = 1\n", encoding="utf-8")
    seen = {source_hash(tmp_path)}
    for path in files:
        path.write_text("x = 2\n", encoding="utf-8")
        seen.add(source_hash(tmp_path))
    assert len(seen) == 1 + len(files)


def test_a_changed_hyperparameter_rebuilds_its_model_and_engine_alone(repository: Path, rebuild: Built) -> None:
    before, content = times(repository), (repository / DENSE).read_bytes()
    config = CONFIG.replace("targets", "hyperparameters = { topk = 8 }\ntargets")
    assert rebuild(config=config) == (0, {SPARSE: "up to date", DENSE: "built", ENGINE: "built"})
    assert (repository / DENSE).read_bytes() != content
    changed = {Path(path).name for path, then in times(repository).items() if before[path] != then}
    assert changed == {DENSE, "assigner-c2-dense.json", ENGINE, f"{ENGINE}.json", "artefacts.json"}


def test_failures_are_reported_and_the_rest_is_built(rebuild: Built) -> None:
    old = CONFIG.replace("targets", 'compute_capabilities = ["4.2"]\ntargets')
    config = f"""{old}
        [[models]]
        kinds = ["detector_loss"]
        num_classes = [1]
        scale = "n"
        weights = "nowhere.safetensors"
        targets = ["tensorrt-rtx"]
    """
    code, states = rebuild(config=config)
    detector = "detector_loss-n-c1-dense"
    assert code == 1
    assert (states[SPARSE], states[DENSE]) == ("up to date", "up to date")
    assert states[ENGINE].startswith("FAILED compute capability '4.2' is unknown to TensorRT-RTX; choose among 7.5")
    assert states[f"{detector}.onnx"].startswith("FAILED weights is ")
    assert "nowhere.safetensors, which is no file" in states[f"{detector}.onnx"]
    assert states[f"{detector}.tensorrt-rtx.fp32.engine"] == f"SKIPPED {detector}.onnx was not built"
    # The engine that was there is as it was, and is up to date again with the file as it was.
    assert rebuild() == (0, dict.fromkeys((SPARSE, DENSE, ENGINE), "up to date"))


def test_artefacts_no_longer_named_are_reported_and_deleted_only_on_demand(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = [repository / "notes.txt", repository / "engines" / "mine.engine"]
    for path in foreign:
        path.write_text("not built here", encoding="utf-8")
    config = CONFIG[: CONFIG.rindex("[[models]]")]
    path = repository.with_name("build.toml")
    path.write_text(config, encoding="utf-8")
    words = ["all", "--config", str(path), "--out", str(repository)]
    assert cli.main(words) == 0
    assert f"still there, delete with --prune: {DENSE}, {ENGINE}" in capsys.readouterr().out
    assert (repository / DENSE).is_file()
    assert cli.main([*words, "--prune"]) == 0
    assert f"deleted: {DENSE}, {ENGINE}" in capsys.readouterr().out
    left = {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}
    assert left - {f"{STATE_FOLDER}/lock", f"{STATE_FOLDER}/artefacts.json"} == {
        SPARSE,
        "assigner-c2.json",
        "notes.txt",
        "engines/mine.engine",
    }


def test_two_runs_do_not_build_into_one_folder(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["all", "--config", str(repository.with_name("build.toml"))]
    with open_repository(repository):
        for _ in range(2):  # a refusal leaves the lock as it is
            assert cli.main(words) == 2
            assert "another `yolo-assigner export all` is building in" in capsys.readouterr().err
    assert cli.main(words) == 0


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "build.toml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "file").touch()
    assert cli.main(["all", "--config", str(tmp_path / "build.toml"), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot hold a repository" in capsys.readouterr().err


# Child processes and their command lines, as Linux lists them in /proc.


def workers_of(pid: int) -> list[int]:
    """Process ids of the builds of a run, whose threads start them."""
    children = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in content(path).split()]
    return [child for child in children if b"spawn_main" in content(Path(f"/proc/{child}/cmdline"))]


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process or thread has ended meanwhile
        return b""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.fixture
def started(repository: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own, one build at a time; the sparse model and the engine are missing."""
    (repository / SPARSE).unlink()
    (repository / "engines" / ENGINE).unlink()
    (repository / f"{SPARSE}.tmp").write_bytes(b"left by a run that was killed")
    command = [
        sys.executable,
        "-m",
        "yolo_assigner",
        "export",
        "all",
        "--config",
        str(repository.with_name("build.toml")),
        "--jobs",
        "1",
    ]
    # Started in the background, the tests ignore Ctrl-C, and a process inherits that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    signal.signal(signal.SIGINT, before)
    with process:
        wait_until(lambda: process.poll() is not None or workers_of(process.pid))
        yield process
        process.kill()


linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")


@linux
def test_a_killed_worker_spoils_only_its_own_build(started: subprocess.Popen[str], repository: Path) -> None:
    (worker,) = workers_of(started.pid)
    os.kill(worker, signal.SIGKILL)
    output, errors = started.communicate(timeout=120)
    assert started.returncode == 1, errors
    assert f"{SPARSE} failed: its process died (SIGKILL)" in output
    assert f"{ENGINE} built in" in output
    assert "Traceback" not in errors
    assert not list(repository.rglob("*.tmp"))


@linux
def test_a_worker_that_dies_at_once_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its parent waits for it."""
    start = SpawnProcess.start

    def start_and_kill(process: SpawnProcess) -> None:
        start(process)
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid))

    monkeypatch.setattr(SpawnProcess, "start", start_and_kill)
    target = OnnxTarget("assigner", "assigner", Hyperparameters(), "sparse", "fp32", None)
    assert "its process died (SIGKILL)" in Processes().build(target, tmp_path).failure


def test_nothing_is_built_after_a_stop(tmp_path: Path) -> None:
    processes = Processes()
    processes.stop()
    target = OnnxTarget("assigner", "assigner", Hyperparameters(), "sparse", "fp32", None)
    with pytest.raises(CancelledError):
        processes.build(target, tmp_path)
    assert list(tmp_path.iterdir()) == []


@linux
# A run handles neither SIGTERM nor SIGKILL, so that one of them is enough for a worker that is just starting.
@pytest.mark.parametrize(
    ("how", "busy"),
    [
        (signal.SIGINT, False),
        (signal.SIGKILL, False),
        (signal.SIGINT, True),
        (signal.SIGTERM, True),
        (signal.SIGKILL, True),
    ],
)
def test_no_worker_outlives_its_run(
    started: subprocess.Popen[str], repository: Path, how: signal.Signals, busy: bool
) -> None:
    (worker,) = workers_of(started.pid)
    if busy:  # torch is there, so it is in the midst of the export
        wait_until(lambda: "libtorch" in Path(f"/proc/{worker}/maps").read_text(encoding="utf-8"))
    os.kill(started.pid, how)
    _, errors = started.communicate(timeout=120)
    assert started.returncode == {signal.SIGINT: 130}.get(how, -how), errors
    wait_until(lambda: not is_running(worker))
    assert not (repository / SPARSE).exists()
    assert how != signal.SIGINT or "Traceback" not in errors
    # The lock went with the process.
    with open_repository(repository) as state:
        assert set(state.unnamed([])) == {DENSE, SPARSE, ENGINE}
