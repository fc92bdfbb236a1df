"""The wheel in an environment of its own, used in a folder with ``models``, ``export.py`` of another project."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.exports import exported

ROOT = Path(__file__).parents[1]
OTHERS = ("models/__init__.py", "export.py", "serve.py", "utils/__init__.py", "benchmarks.py")
LIBRARY = """
import torch
import yolo_assigner
import yolo_loss
from yolo_assigner.models import DetectionModel, DetectorConfig
assigner = yolo_loss.TaskAlignedAssigner(num_classes=2)
box = torch.tensor([[[0.0, 0.0, 16.0, 16.0]]])
found = assigner(
    torch.full((1, 1, 2), 0.5), box, torch.tensor([[8.0, 8.0]]), torch.zeros(1, 1, 1), box, torch.ones(1, 1, 1)
)
print(found[3].tolist(), yolo_assigner.__version__ == yolo_loss.__version__)
"""
CLIENT = """
import sys
import numpy as np
from yolo_assigner.serve.client import AssignerClient
box = np.array([[[0, 0, 16, 16]]], np.float32)
with AssignerClient(sys.argv[1]) as client:
    found = client.assign(
        np.full((1, 1, 3), 0.5, np.float32), box, np.array([[8, 8]], np.float32),
        np.zeros((1, 1, 1), np.int64), box, np.ones((1, 1, 1), bool),
    )
print(found.fg_mask.tolist())
"""


class Environment(NamedTuple):
    """An environment with the wheel, and a folder of another project to work in."""

    programs: Path
    folder: Path

    def run(self, program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the folder."""
        return subprocess.run(
            [self.programs / program, *words], capture_output=True, text=True, cwd=self.folder, env=clean(), check=False
        )


def clean() -> dict[str, str]:
    """The environment's variables without those that let Python find this repository."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", out, ROOT)
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, env=clean())
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel's dependencies are those of this environment; this project itself is not to be found there."""
    root = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    (packages,) = root.glob("lib/python3*/site-packages")
    # A path in a .pth file is searched, its own .pth files (an editable install's) are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ("--python", root / "bin" / "python", "install", "--no-deps", "--no-index", "--quiet", wheel)
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, env=clean())
    folder = tmp_path_factory.mktemp("yolov5")
    for name in OTHERS:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise SystemExit('{name} of another project was imported')\n")
    return Environment(root / "bin", folder)


def test_the_wheel_installs_two_names(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"yolo_loss", "yolo_assigner"}
    for package in ("yolo_loss", "yolo_assigner/models", "yolo_assigner/export", "yolo_assigner/serve"):
        folder = ROOT / package
        here = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
        assert {name.removeprefix(f"{package}/") for name in names if name.startswith(f"{package}/")} >= here
        assert f"{package}/py.typed" in names
    assert any(name.startswith("yolo_assigner/serve/http/static/") for name in names)


def test_the_library_is_imported_beside_another_project(environment: Environment) -> None:
    script = environment.folder / "train.py"  # a script's folder comes first on the path
    script.write_text(LIBRARY)
    done = environment.run("python", script)
    assert (done.returncode, done.stdout) == (0, "[[True]] True\n"), done.stderr


def test_the_other_project_is_still_found_by_its_names(environment: Environment) -> None:
    done = environment.run("python", "-c", "import models")
    assert "models/__init__.py of another project" in done.stderr


def test_the_command_exports_beside_another_project(environment: Environment, tmp_path: Path) -> None:
    done = environment.run(
        "yolo-assigner", "export", "triton", exported("loss", "sparse"), "--out", tmp_path / "triton"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "triton" / "loss" / "config.pbtxt").is_file()


def wait_until_ready(address: str) -> None:
    deadline = time.monotonic() + 240
    while True:
        with suppress(HTTPError), urlopen(f"http://{address}/v2/health/ready"):
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def served(environment: Environment) -> Iterator[str]:
    """The address of a server, with its models in a process of their own."""
    words = ("serve", "--artifacts", exported("assigner", "dense"), "--port", "0", "--threads", "1")
    with subprocess.Popen(
        [environment.programs / "yolo-assigner", *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=environment.folder,
        env=clean(),
    ) as process:
        assert process.stdout is not None
        try:
            address = re.match(r"serving on http://(\S+)", process.stdout.readline())
            assert address
            wait_until_ready(address[1])
            yield address[1]
        finally:
            process.terminate()
    assert process.returncode == 0


def test_the_command_serves_the_client_beside_another_project(environment: Environment, served: str) -> None:
    done = environment.run("python", "-c", CLIENT, served)
    assert (done.returncode, done.stdout) == (0, "[[True]]\n"), done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "no command"),
        (("exprot",), 2, "unknown command 'exprot'; choose one of export, serve, explain, audit"),
        (("--help",), 0, "usage: yolo-assigner"),
        (("--version",), 0, "yolo-assigner 0."),
        (("export", "--help"), 0, "usage: yolo-assigner export"),
        (("serve", "--help"), 0, "usage: yolo-assigner serve"),
        (("serve", "--artifacts", "nowhere"), 2, "nowhere"),
    ],
)
def test_the_command_says_what_it_can_do(
    environment: Environment, words: tuple[str, ...], code: int, said: str
) -> None:
    done = environment.run("yolo-assigner", *words)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "another project" not in done.stderr
