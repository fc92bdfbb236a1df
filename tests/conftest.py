"""What several test folders share.

Exports are imported by what needs them: the process that hands out the tests does without torch.
"""

from __future__ import annotations

import gc
import importlib.util
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.guard import guard

__all__ = ["KINDS", "export_detector", "export_kinds", "guard"]

KINDS = ("assigner", "loss", "loss_grad")

if importlib.util.find_spec("hypothesis"):  # it is not where some tests run on a GPU or beside the reference
    from hypothesis import settings

    # How long an example takes depends on the machine.
    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exclude what the modules of all tests consist of from garbage collection, which takes half a second with it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def artifacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real exported models of ``KINDS`` (3 classes, sparse), made once per run."""
    return export_kinds(tmp_path_factory.mktemp("artifacts"), "sparse")


@pytest.fixture(scope="session")
def assigner_dir() -> Path:
    """A read-only folder with the exported assigner alone, for servers of which any model will do: it loads soonest."""
    from tests.exports import exported

    return exported("assigner", "dense")


@pytest.fixture(scope="session")
def dense_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of ``artifacts_dir`` in the implementation that TensorRT takes; they load in half the time."""
    return export_kinds(tmp_path_factory.mktemp("dense"), "dense")


@pytest.fixture(scope="session")
def detector_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an exported ``detector_loss`` (n, 3 classes, sparse), made once per run; its weights beside it."""
    return export_detector(tmp_path_factory.mktemp("detector"), "sparse")


@pytest.fixture(scope="session")
def dense_detector_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the implementation that TensorRT takes."""
    return export_detector(tmp_path_factory.mktemp("dense_detector"), "dense")


def export_detector(folder: Path, implementation: str) -> Path:
    """Export a detector of random but lively weights."""
    from tests.exports import exported

    return shutil.copytree(exported("detector_loss", implementation), folder, dirs_exist_ok=True)


def export_kinds(folder: Path, implementation: str) -> Path:
    """Export one model of each kind."""
    from tests.exports import exported_kinds

    for made in exported_kinds(KINDS, implementation):
        shutil.copytree(made, folder, dirs_exist_ok=True)
    return folder
