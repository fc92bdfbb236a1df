"""Reading and writing contracts; every unusable one gives a clear error."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolo_assigner.export.contract import ContractError, find_contracts, load_contract, scan_contracts


@pytest.fixture
def folder(artifacts_dir: Path, tmp_path: Path) -> Path:
    """A copy of the models to modify."""
    return Path(shutil.copytree(artifacts_dir, tmp_path / "copy"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def test_a_saved_contract_is_loaded_unchanged(artifacts_dir: Path, tmp_path: Path) -> None:
    contract = load_contract(artifacts_dir / "loss.json")
    contract.save(tmp_path / "again.json")
    assert load_contract(tmp_path / "again.json") == contract
    assert [path.name for path in tmp_path.iterdir()] == ["again.json"]


def test_truncated_model(folder: Path) -> None:
    model = folder / "loss.onnx"
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(ContractError, match="hash differs"):
        find_contracts(folder)


def test_missing_model(folder: Path) -> None:
    (folder / "assigner.onnx").unlink()
    with pytest.raises(ContractError, match=r"assigner\.onnx, which is not beside it"):
        find_contracts(folder)


def test_a_contract_under_another_name(folder: Path) -> None:
    (folder / "loss.json").rename(folder / "other.json")
    with pytest.raises(ContractError, match=r"other\.json describes model 'loss'; rename it to loss\.json"):
        find_contracts(folder)


def test_unusable_models_do_not_hide_the_others(folder: Path) -> None:
    (folder / "assigner.json").write_text("{")
    (folder / "loss.onnx").unlink()
    found, damaged = scan_contracts(folder)
    assert [contract.name for _, contract in found] == ["loss_grad"]
    assert list(damaged) == ["assigner", "loss"]
    assert "which is not beside it" in str(damaged["loss"])


def replace_by_special_file(path: Path, kind: str) -> None:
    """Replace a file by a FIFO, a device, a socket or a folder."""
    path.unlink()
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
        case "folder":
            path.mkdir()


@pytest.mark.timeout(30)  # opening a FIFO blocks
@pytest.mark.skipif(sys.platform == "win32", reason="special files of POSIX")
@pytest.mark.parametrize("kind", ["FIFO", "device", "socket", "folder"])
def test_special_files_are_not_opened(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # the path of a socket is limited in length
    replace_by_special_file(Path("assigner.json"), kind)
    replace_by_special_file(Path("loss.onnx"), kind)
    found, damaged = scan_contracts(Path())
    assert [contract.name for _, contract in found] == ["loss_grad"]
    assert "assigner.json cannot be read as a contract (it is no regular file)" in str(damaged["assigner"])
    assert "loss.onnx cannot be read (it is no regular file)" in str(damaged["loss"])


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="no contract"):
        find_contracts(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(contract_version=99), "version 99, this release reads up to 2; upgrade"),
        (lambda data: data.pop("contract_version"), "has no contract_version"),
        (lambda data: data.pop("inputs"), "not a complete contract"),
        (lambda data: data.update(surprise=1), "not a complete contract"),
        (lambda data: data.update(file=5), "not a complete contract"),
        (lambda data: data.update(hyperparameters=[]), "not a complete contract"),
        (lambda data: data.update(kind="detector"), "kind 'detector'"),
    ],
)
def test_foreign_contract(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(folder / "loss.json", change)
    with pytest.raises(ContractError, match=message):
        load_contract(folder / "loss.json")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000], ids=lambda one: repr(one[:9]))
def test_corrupt_contract(folder: Path, content: bytes) -> None:
    (folder / "loss.json").write_bytes(content)
    with pytest.raises(ContractError, match=r"loss\.json"):
        load_contract(folder / "loss.json")


def test_reading_contracts_needs_no_torch() -> None:
    code = """
import sys
import yolo_assigner.export.contract
sys.exit(any(name in sys.modules for name in ("torch", "onnx", "numpy")))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
