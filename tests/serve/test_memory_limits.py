"""Little memory: where the server takes its limits from, and which of its processes ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import KINDS
from tests.control_group import inside
from tests.serve.conftest import ROOT, Live, Reply, binary_rows, loss_inputs, start, stop, worker_of
from yolo_assigner.serve.settings import PARTS, Settings, describe, read_settings
from yolo_assigner.serve.system import Memory, memory_limit

MIB = 2**20
TODAY = {name: Settings.model_fields[name].default for name in PARTS}
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
OTHER_V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
BODY_IMAGES = 32  # 72 MB in float32


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        ("0::/", [V2], {"memory.max": 600 * MIB}, "memory.max"),
        ("0::/a/b", [V2], {"a/b/memory.max": "max", "a/memory.max": 600 * MIB}, "a/memory.max"),
        ("0::/a/b", [V2], {"a/b/memory.max": 600 * MIB, "a/memory.max": 700 * MIB}, "a/b/memory.max"),
        # In a container that sees the whole machine's groups, and in one whose mount begins elsewhere.
        ("0::/docker/1", [V2.replace("{root}", "/docker/1")], {"memory.max": 600 * MIB}, "memory.max"),
        ("0::/../other", [V2.replace("{root}", "/")], {"memory.max": 600 * MIB}, "memory.max"),
        ("0::/", [V2], {"memory.max": "max"}, None),
        ("0::/", [V2], {"memory.max": 2**60}, None),
        ("0::/", [V2], {}, None),
        ("4:memory:/a\n3:cpu:/", [OTHER_V1, V1], {"memory/a/memory.limit_in_bytes": 600 * MIB}, "memory/a/memory.l"),
        ("4:memory:/a", [V1], {"memory/a/memory.limit_in_bytes": 0x7FFFFFFFFFFFF000}, None),
        ("4:cpu,memory:/d/1\n0::/", [V1.replace("{root}", "/d/1")], {"memory/memory.limit_in_bytes": 600 * MIB}, "mem"),
        ("3:cpu:/", [OTHER_V1], {"cpu/memory.limit_in_bytes": 600 * MIB}, None),
        (None, [], {}, None),
    ],
    ids=str,
)
def test_the_limit_of_the_container(
    tmp_path: Path, groups: str | None, mounts: list[str], files: dict[str, int | str], expected: str | None
) -> None:
    """Groups as they are named in /proc/self/cgroup, mounts as in mountinfo, and files with limits."""
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(f"{groups}\n")
        lines = ["23 1 8:1 / / rw - ext4 /dev/root rw", *(line.replace("{root}", "/") for line in mounts)]
        (tmp_path / "proc/self/mountinfo").write_text("\n".join(lines) + "\n")
    for name, value in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    nbytes, source = memory_limit(tmp_path)
    if expected is None:
        assert (nbytes, source) == (MACHINE, "the machine")
    else:
        assert nbytes == 600 * MIB
        assert source.startswith(str(tmp_path / "sys/fs/cgroup" / expected))


@pytest.mark.parametrize(
    ("mebibytes", "request_bytes", "json_bytes", "work", "total"),
    [
        (2**20, 256, 64, 4096, 1024),  # as much as there is: not more than ever
        (16 * 1024, 256, 64, 4096, 1024),
        (4 * 1024, 256, 64, 1024, 409.6),
        (1024, 64, 16, 256, 102.4),
        (256, 16, 4, 64, 25.6),
        (1, 16, 4, 64, 25.6),  # the minimum
    ],
)
def test_defaults_follow_the_memory(
    mebibytes: int, request_bytes: int, json_bytes: int, work: int, total: float
) -> None:
    settings = read_settings(["--artifacts", "a"], {}, Memory(mebibytes * MIB, "a test")).settings
    limits = (settings.max_request_bytes, settings.max_json_bytes, settings.max_work_bytes, settings.max_total_bytes)
    assert limits == (request_bytes * MIB, json_bytes * MIB, work * MIB, int(total * MIB))


def test_what_is_given_wins_and_everything_says_where_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('artifacts = "a"\nmax_json_bytes = 7\n')
    memory = Memory(600 * MIB, "/sys/fs/cgroup/memory.max")
    environment = {"YOLO_ASSIGNER_MAX_TOTAL_BYTES": "5000000000"}
    words = ["--config", str(file), "--max-request-bytes", "4000000000"]
    configuration = read_settings(words, environment, memory)
    settings = configuration.settings
    assert (settings.max_request_bytes, settings.max_total_bytes, settings.max_json_bytes) == (4 * 10**9, 5 * 10**9, 7)
    assert settings.max_work_bytes == 150 * MIB
    work = f"{150 * MIB}  # default for 600 MiB of memory by /sys/fs/cgroup/memory.max"
    shown = describe(configuration)
    assert f"max_work_bytes = {work}" in shown
    assert "max_request_bytes = 4000000000  # --max-request-bytes" in shown
    assert "max_total_bytes = 5000000000 (YOLO_ASSIGNER_MAX_TOTAL_BYTES)" in configuration.limits
    assert f"max_work_bytes = {150 * MIB} (default for 600 MiB" in configuration.limits


@pytest.mark.parametrize(("total", "warned"), [(300 * MIB, False), (300 * MIB + 1, True)])
def test_bodies_that_would_fill_the_memory_are_warned_of(total: int, warned: bool) -> None:
    words = ["--artifacts", "a", "--max-total-bytes", str(total)]
    configuration = read_settings(words, {}, Memory(600 * MIB, "/sys/fs/cgroup/memory.max"))
    assert (configuration.warning is not None) == warned
    if configuration.warning is not None:
        assert f"max_total_bytes = {total} (--max-total-bytes) is more than half of 600 MiB" in configuration.warning
        assert f"set it to {300 * MIB} or less" in configuration.warning


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a process where memory is short, by its score")
def test_the_engines_end_first(live: Live) -> None:
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (live.process.pid, worker_of(live))]
    assert scores == [int(Path("/proc/self/oom_score_adj").read_text()), 1000]


def test_engines_ended_while_they_are_loaded_again_come_back(
    dense_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Memory is often still short then, which must not count as a failure of a model."""
    with serving("--artifacts", dense_dir) as live:
        rows, blob = binary_rows(loss_inputs())
        assert live.infer("loss", {"inputs": rows}, blob).status == 200  # all have been loaded by now
        capfd.readouterr()
        os.kill(worker_of(live), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while "is not taken" not in capfd.readouterr().err:  # the next process chooses an engine for its first model
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(worker_of(live), signal.SIGKILL)
        wait_until_ready(live)
        assert (
            "cannot be started: the engines' process ended while models were loaded (signal 9)"
            in capfd.readouterr().err
        )
        states = live.send("POST", "/v2/repository/index", {}).json
        assert {state["name"]: state["state"] for state in states} == dict.fromkeys(KINDS, "READY")


@contextlib.contextmanager
def serving(*words: str | Path, through: Sequence[str] = ()) -> Iterator[Live]:
    """Start a server that is killed afterwards, whatever happens."""
    live = start(*words, through=through)
    try:
        yield live
        assert stop(live) == 0
    finally:
        live.process.kill()


def wait_until_ready(live: Live) -> None:
    """Wait until all models are loaded again."""
    deadline = time.monotonic() + 90
    while live.send("GET", "/v2/health/ready").status != 200:
        assert live.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


def call_together(live: Live, callers: int, images: int) -> list[Reply]:
    """Callers of the model that needs the most memory."""
    rows, blob = binary_rows(loss_inputs(images=images, slots=20, side=640))
    with ThreadPoolExecutor(callers) as pool:
        replies = [pool.submit(live.infer, "loss_grad", {"inputs": rows}, blob) for _ in range(callers)]
        return [reply.result() for reply in replies]


def test_too_little_memory_ends_the_engines_and_not_the_server(
    group: Path, artifacts_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With limits as for a machine that has enough, and so many bodies that the server has more than an engine."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in TODAY.items()]
    with serving("--artifacts", artifacts_dir, *words, through=inside(group)) as live:
        rows, blob = binary_rows(loss_inputs())
        before, worker = live.infer("loss", {"inputs": rows}, blob).body, worker_of(live)
        assert "is more than half of 600 MiB" in capfd.readouterr().err
        replies = call_together(live, 5, BODY_IMAGES)
        assert {reply.status for reply in replies} <= {200, 500, 503}
        assert 500 in {reply.status for reply in replies}
        wait_until_ready(live)
        assert worker_of(live) != worker
        assert live.infer("loss", {"inputs": rows}, blob).body == before
        assert live.process.poll() is None


def test_limits_of_a_container_end_nothing(group: Path, artifacts_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With default settings, requests that do not fit are refused and admitted ones are computed."""
    with serving("--artifacts", artifacts_dir, through=inside(group)) as live:
        log = capfd.readouterr().err
        assert f"max_request_bytes = {600 * MIB // 16} (default for 600 MiB of memory by {group}" in log
        worker = worker_of(live)
        refused = call_together(live, 4, BODY_IMAGES)
        assert [reply.status for reply in refused] == [413] * 4
        assert "--max-request-bytes" in refused[0].error
        accepted = {reply.status for _ in range(2) for reply in call_together(live, 4, BODY_IMAGES // 2)}
        assert 200 in accepted
        assert accepted <= {200, 503}
        assert worker_of(live) == worker


def test_settings_are_shown_with_the_container_they_follow(group: Path) -> None:
    command = [*inside(group), sys.executable, "-m", "yolo_assigner", "serve", "--artifacts", "a", "--show-config"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(
        rf"^max_total_bytes = {60 * MIB}  # default for 600 MiB of memory by {group}/", shown, re.MULTILINE
    )
