"""The runtimes, each in a small environment of its own outside the tree, kept between runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

HERE = Path(__file__).parent
INSTALL_SECONDS = 600


class Runtime(NamedTuple):
    """One runtime in one version.

    Attributes:
        package: Name in its registry.
        version: Of the package.
    """

    package: str
    version: str

    @property
    def requirement(self) -> str:
        """``package==version``, by which it is chosen."""
        return f"{self.package}=={self.version}"

    @property
    def runs_in_node(self) -> bool:
        """Whether it comes from npm."""
        return self.package.startswith("onnxruntime-")


class SkippedError(Exception):
    """A runtime cannot be installed here."""


# The oldest supported one, one between, the newest for GPUs, the newest; what runs outside Python.
RUNTIMES = (
    Runtime("onnxruntime", "1.22.0"),
    Runtime("onnxruntime", "1.26.0"),
    Runtime("onnxruntime", "1.31.1"),
    Runtime("onnxruntime", "1.32.0"),
    Runtime("onnxruntime-node", "1.30.0"),
    Runtime("onnxruntime-web", "1.30.0"),
    Runtime("openvino", "2026.4.1"),
)


def command(runtime: Runtime, cache: Path) -> tuple[list[str], Path]:
    """Install a runtime where it is missing.

    Returns:
        The words that run a model in it, before those that name the model, and the folder to run them in.

    Raises:
        SkippedError: It cannot be installed.
    """
    if not runtime.runs_in_node and _installed(runtime.package) == runtime.version:
        return [sys.executable, str(HERE / "run_model.py"), runtime.package], HERE
    folder = cache / f"{runtime.requirement}-py{sys.version_info[0]}.{sys.version_info[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not (folder / "ready").exists():
            _install(runtime, folder)
            (folder / "ready").touch()
    if runtime.runs_in_node:
        return ["node", str(HERE / "run_model.mjs"), runtime.package], folder
    return [str(folder / "bin" / "python"), str(HERE / "run_model.py"), runtime.package], folder


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _install(runtime: Runtime, folder: Path) -> None:
    if runtime.runs_in_node:
        # Install scripts only fetch CUDA's libraries.
        words = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)]
        _call([*words, f"{runtime.package}@{runtime.version}"])
        return
    _call([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)])
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    _call([*pip, "--disable-pip-version-check", runtime.requirement, "safetensors"])


def _call(words: list[str]) -> None:
    if shutil.which(words[0]) is None:
        raise SkippedError(f"there is no {words[0]} here")
    try:
        subprocess.run(words, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise SkippedError(f"{words[0]} took more than {INSTALL_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line.lower()] or ["no reason given"]
        raise SkippedError(f"installing failed: {lines[-1]}") from error
