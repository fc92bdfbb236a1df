"""Unusable engines: each gives a clear error with the command that rebuilds it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.export.engines import INSTALLED, SMALL
from yolo_assigner.export.contract import ContractError, load_contract
from yolo_assigner.export.to_tensorrt.build import build_engine
from yolo_assigner.export.to_tensorrt.contract import (
    EngineContract,
    check_engine,
    check_machine,
    find_engines,
    load_engine_contract,
)

Built = tuple[Path, EngineContract]
AGAIN = "yolo-assigner export tensorrt assigner.onnx --runtime"


@pytest.fixture(scope="module")
def built(dense_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("engines")
    return build_engine(dense_dir / "assigner.onnx", out, runtime=INSTALLED[-1], profiles=[SMALL])


@pytest.fixture
def copy(built: Built, tmp_path: Path) -> Path:
    """A copy of the engine to modify."""
    for path in built[0].parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / built[0].name


def test_a_good_engine_passes(built: Built, dense_dir: Path) -> None:
    path, engine = built
    check_engine(path, engine, load_contract(dense_dir / "assigner.json"))
    check_machine(engine, engine.runtime, engine.runtime_version, None)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), r"\.engine is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is cut short or altered: its hash is"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"), "is cut short or altered: its hash is"),
        (lambda path: path.write_bytes(b""), "is cut short or altered: its hash is e3b0c44298fc,"),
    ],
)
def test_a_spoilt_file(
    copy: Path, built: Built, dense_dir: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(copy)
    with pytest.raises(ContractError, match=f"{message}.*`{AGAIN}"):
        check_engine(copy, built[1], load_contract(dense_dir / "assigner.json"))


def test_an_engine_of_another_model(built: Built, dense_dir: Path) -> None:
    path, engine = built
    other = load_contract(dense_dir / "loss.json")
    hashes = f"hash {engine.model_sha256[:12]}, but loss.onnx has {other.sha256[:12]}; build it with `{AGAIN}"
    with pytest.raises(ContractError, match=hashes):
        check_engine(path, engine, other)


@pytest.mark.parametrize(
    ("capabilities", "runtime", "version", "capability", "message"),
    [
        (
            (),
            "tensorrt",
            "1.7",
            None,
            r"built by tensorrt-rtx, but tensorrt is to load it; .*--runtime tensorrt --prec",
        ),
        (
            (),
            "tensorrt-rtx",
            "1.8",
            None,
            r"built by tensorrt-rtx 1\.7, which alone can load it, but 1\.8 is installed.*--runtime tensorrt-rtx",
        ),
        (
            ("8.9", "12.0"),
            "tensorrt-rtx",
            "1.7",
            "8.6",
            r"8\.9 and 12\.0, but the one here has 8\.6;.*-capability 8\.6`",
        ),
        ((), "tensorrt-rtx", "1.7", "7.5", r"8\.0 and later, but the one here has 7\.5; .*--compute-capability 7\.5`"),
    ],
)
def test_another_machine(
    built: Built,
    capabilities: tuple[str, ...],
    runtime: str,
    version: str,
    capability: str | None,
    message: str,
) -> None:
    engine = replace(built[1], runtime="tensorrt-rtx", runtime_version="1.7", compute_capabilities=capabilities)
    with pytest.raises(ContractError, match=message):
        check_machine(engine, runtime, version, capability)


@pytest.mark.parametrize(
    ("capabilities", "capability"),
    [((), "8.0"), ((), "8.9"), ((), "12.1"), (("7.5",), "7.5"), (("8.9", "12.0"), "12.0"), (("8.9",), None)],
)
def test_machines_that_an_engine_is_for(built: Built, capabilities: tuple[str, ...], capability: str | None) -> None:
    engine = replace(built[1], runtime="tensorrt-rtx", runtime_version="1.7", compute_capabilities=capabilities)
    check_machine(engine, "tensorrt-rtx", "1.7", capability)


def test_tensorrt_builds_for_the_gpu_of_the_machine(built: Built) -> None:
    engine = replace(built[1], runtime="tensorrt", runtime_version="11.4", compute_capabilities=("8.9",))
    with pytest.raises(
        ContractError, match=r"capability 8\.9, but the one here has 9\.0; build it here with"
    ) as caught:
        check_machine(engine, "tensorrt", "11.4", "9.0")
    assert "--compute-capability" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(contract_version=99), "version 99, this release reads up to 1; upgrade"),
        (lambda data: data.pop("contract_version"), "has no contract_version"),
        (lambda data: data.pop("profiles"), "not a complete engine contract"),
        (lambda data: data.update(profiles=[{"B": [1, 2]}]), "not a complete engine contract"),
        (lambda data: data.update(surprise=1), "not a complete engine contract"),
        (lambda data: data.update(runtime="openvino"), "runtime 'openvino', not one of tensorrt, tensorrt-rtx"),
    ],
)
def test_a_foreign_contract(copy: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    path = copy.with_name(f"{copy.name}.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ContractError, match=f"{message}.*`yolo-assigner export tensorrt`"):
        load_engine_contract(path)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe"])
def test_a_corrupt_contract(copy: Path, content: bytes) -> None:
    path = copy.with_name(f"{copy.name}.json")
    path.write_bytes(content)
    with pytest.raises(
        ContractError, match=r"engine\.json .*build the engine again with `yolo-assigner export tensorrt`"
    ):
        load_engine_contract(path)


def test_engines_are_found_by_their_model(built: Built, dense_dir: Path) -> None:
    path, engine = built
    assert find_engines(path.parent, load_contract(dense_dir / "assigner.json")) == [(path, engine)]
    assert find_engines(path.parent, load_contract(dense_dir / "loss.json")) == []


def test_the_rebuild_command_is_quoted_for_a_shell(built: Built) -> None:
    engine = replace(built[1], model_file="my model.onnx", runtime="tensorrt-rtx", compute_capabilities=("8.9", "12.0"))
    words = shlex.split(engine.rebuild_command)
    assert words[:4] == ["yolo-assigner", "export", "tensorrt", "my model.onnx"]
    assert words[-3:] == ["--compute-capability", "8.9", "12.0"]
