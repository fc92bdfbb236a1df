"""What a container runs, as the process that it is there."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.engines import Machine, has_engine
from yolo_assigner.export.contract import load_contract
from yolo_assigner.export.to_tensorrt.contract import load_engine_contract

SMALL = "--runtime tensorrt-rtx --quiet --profile B=1 M=8 imgsz=64"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "deploy.entrypoint", *words]


def variables(artifacts: Path, **more: str) -> dict[str, str]:
    """As the image sets them, with an address that needs no key. A GPU, where there is one, is hidden."""
    own = {"ARTIFACTS": str(artifacts), "HOST": "127.0.0.1", "PORT": "8123", "METRICS_PORT": "8002"}
    return {
        **os.environ,
        **{f"YOLO_ASSIGNER_{name}": value for name, value in own.items()},
        "CUDA_VISIBLE_DEVICES": "",
        **more,
    }


def run(artifacts: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = variables(artifacts, **more)
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, timeout=120, env=environment)


@pytest.fixture
def dense(dense_dir: Path, tmp_path: Path) -> Path:
    """A folder with one dense model, where engines can be put."""
    for name in ("assigner.onnx", "assigner.json"):
        shutil.copy(dense_dir / name, tmp_path)
    (tmp_path / "engines").mkdir()
    return tmp_path


@pytest.mark.parametrize("words", [(), ("serve",)])
def test_options_alone_are_those_of_the_service(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(tmp_path, *words, "--threads", "3", "--show-config")
    assert done.returncode == 0
    assert "threads = 3  # --threads" in done.stdout
    assert "port = 8123  # YOLO_ASSIGNER_PORT" in done.stdout


def test_any_other_program_is_run_as_it_is(tmp_path: Path) -> None:
    assert run(tmp_path, "sh", "-c", "exit 7").returncode == 7


def test_an_unknown_command_is_named_with_the_known_ones(tmp_path: Path) -> None:
    done = run(tmp_path, "build-engine")
    assert done.returncode == 2
    assert "build-engine cannot be run" in done.stderr
    assert "build-engines" in done.stderr


def test_engines_are_built_beside_the_models(dense: Path) -> None:
    done = run(dense, "build-engines", ENGINE_OPTIONS=SMALL)
    assert done.returncode == 0, done.stderr
    name = "assigner.tensorrt-rtx.fp32.engine"
    engine = load_engine_contract(dense / "engines" / f"{name}.json")
    assert engine.profiles[0]["M"] == (8, 8, 8)  # the words of the variable arrived

    # What the machine would do with it: one that built it uses it, one with another version or an older GPU does not.
    contract, folder = load_contract(dense / "assigner.json"), dense / "engines"
    machine = Machine("tensorrt-rtx", engine.runtime_version, "8.9")
    assert has_engine(folder, contract, machine)
    assert not has_engine(folder, contract, machine._replace(version="0"))
    assert not has_engine(folder, contract, machine._replace(capability="7.5"))
    assert not has_engine(folder, dataclasses.replace(contract, sha256="0"), machine)
    (folder / name).write_bytes(b"cut short")
    assert not has_engine(folder, contract, machine)


def test_sparse_models_are_refused_with_the_remedy(artifacts_dir: Path) -> None:
    done = run(artifacts_dir, "build-engines")
    assert done.returncode == 2
    assert "target gpu" in done.stderr


def test_sigterm_ends_a_build(dense: Path, dense_dir: Path) -> None:
    # The largest model at the largest sizes, which takes seconds.
    for name in ("loss_grad.onnx", "loss_grad.json"):
        shutil.copy(dense_dir / name, dense)
    words = command("build-engines", "--runtime", "tensorrt-rtx", "--quiet")
    environment = variables(dense, PYTHONUNBUFFERED="1")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert "assigner.onnx" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert not list((dense / "engines").iterdir())


def test_a_first_start_without_a_gpu_says_so_and_serves(dense: Path) -> None:
    # A mount of its own for this process alone, as a volume is in a container.
    mount = ["unshare", "--mount", "--map-root-user", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"']
    words = [*mount, str(dense / "engines"), *command("--show-config")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120, env=variables(dense))
    if "unshare failed" in done.stderr:
        pytest.skip("this machine allows no namespaces")
    assert done.returncode == 0, done.stderr
    assert "no engine is built: no GPU can be used" in done.stderr
    assert "artifacts" in done.stdout


def test_a_first_start_without_a_volume_builds_nothing(dense: Path) -> None:
    done = run(dense, "--show-config")
    assert (done.returncode, done.stderr) == (0, "")
