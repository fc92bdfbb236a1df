"""Engines built by every installed runtime; TensorRT-RTX builds them without a GPU."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import KINDS
from tests.export.engines import INSTALLED, SMALL
from tests.exports import EVERY_INPUT, exported
from yolo_assigner.export.contract import load_contract
from yolo_assigner.export.to_tensorrt.build import BuildError, build_engine
from yolo_assigner.export.to_tensorrt.config import capability_members, current_capability, make_config, make_profile
from yolo_assigner.export.to_tensorrt.contract import EngineContract, load_engine_contract
from yolo_assigner.export.to_tensorrt.library import load_library
from yolo_assigner.export.to_tensorrt.log import BuildLog, make_logger
from yolo_assigner.export.to_tensorrt.profiles import parse_profile, resolve_profile

Built = tuple[Path, EngineContract]


def has_gpu() -> bool:
    try:
        current_capability()
    except BuildError:
        return False
    return True


@pytest.fixture(scope="module", params=[(runtime, kind) for runtime in INSTALLED for kind in KINDS], ids="-".join)
def built(request: pytest.FixtureRequest, dense_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    runtime, kind = request.param
    out = tmp_path_factory.mktemp("engines")
    return build_engine(dense_dir / f"{kind}.onnx", out, runtime=runtime, profiles=[SMALL])


def test_an_engine_matches_its_contract(built: Built, dense_dir: Path) -> None:
    path, engine = built
    model = load_contract(dense_dir / f"{engine.name}.json")
    assert path.name == f"{engine.name}.{engine.runtime}.fp32.engine"
    assert load_engine_contract(path.with_name(f"{path.name}.json")) == engine
    assert engine.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (engine.model_file, engine.model_sha256) == (model.file, model.sha256)
    assert (engine.inputs, engine.outputs) == (model.inputs, model.outputs)
    assert engine.profiles == (resolve_profile(SMALL, model),)
    assert engine.build_seconds > 0
    assert sorted(found.name for found in path.parent.iterdir()) == [path.name, f"{path.name}.json"]


def test_an_engine_file_has_a_good_header(built: Built) -> None:
    path, engine = built
    library = load_library(engine.runtime)
    if not hasattr(library.Runtime, "get_engine_validity"):
        pytest.skip(f"{engine.runtime} cannot tell")
    runtime = library.Runtime(make_logger(library, BuildLog()))
    malformed = int(library.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    content = path.read_bytes()
    # Without a GPU every engine is invalid, but only other content is malformed.
    assert not runtime.get_engine_validity(content)[1] & malformed
    assert runtime.get_engine_validity(b"\0" + content[1:])[1] & malformed


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_its_capability_is_an_error_with_cudas_reason() -> None:
    with pytest.raises(BuildError, match=r"no GPU can be used \(cudaError"):
        current_capability()


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_an_engine_cannot_be_loaded_and_the_log_says_why(built: Built) -> None:
    path, engine = built
    log = BuildLog()
    library = load_library(engine.runtime)
    assert library.Runtime(make_logger(library, log)).deserialize_cuda_engine(path.read_bytes()) is None
    assert "cudaError 35: CUDA driver version is insufficient" in str(log.failure("not loaded:"))


@pytest.mark.skipif(not has_gpu(), reason="engines are loaded by a GPU's driver")
def test_a_loaded_engine_has_the_tensors_and_sizes_of_its_contract(built: Built) -> None:
    path, engine = built
    library = load_library(engine.runtime)
    loaded = library.Runtime(make_logger(library, BuildLog())).deserialize_cuda_engine(path.read_bytes())
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    assert names == [spec.name for spec in (*engine.inputs, *engine.outputs)]
    for spec in engine.inputs:
        axes = [engine.profiles[0][axis] if isinstance(axis, str) else (axis,) * 3 for axis in spec.axes]
        shapes = [tuple(shape) for shape in loaded.get_tensor_profile_shape(spec.name, 0)]
        assert shapes == list(zip(*axes, strict=True))


@pytest.mark.parametrize("runtime", INSTALLED)
@pytest.mark.parametrize("kind", KINDS)
def test_every_input_gets_the_sizes_of_its_axes(dense_dir: Path, runtime: str, kind: str) -> None:
    library = load_library(runtime)
    contract = load_contract(dense_dir / f"{kind}.json")
    builder = library.Builder(make_logger(library, BuildLog()))
    shapes = make_profile(builder, contract.inputs, resolve_profile(SMALL, contract))
    assert bool(shapes)
    got = {spec.name: [tuple(shape) for shape in shapes.get_shape(spec.name)] for spec in contract.inputs}
    assert got["gt_bboxes"] == [(1, 0, 4), (2, 3, 4), (4, 8, 4)]
    if kind == "assigner":
        assert got["anc_points"] == [(1, 84, 2), (1, 189, 2), (4, 336, 2)]  # 8 * 8 + 4 * 4 + 2 * 2 and so on
        assert got["pd_scores"] == [(1, 84, 3), (2, 189, 3), (4, 336, 3)]
    else:
        assert got["feat_0"] == [(1, 67, 8, 8), (2, 67, 12, 12), (4, 67, 16, 16)]  # 4 * 16 bins and 3 classes


@pytest.mark.parametrize("runtime", INSTALLED)
def test_arithmetic_is_neither_rounded_nor_loses_nan(runtime: str) -> None:
    library = load_library(runtime)
    config = make_config(library, library.Builder(make_logger(library, BuildLog())), [])
    assert not config.get_flag(library.BuilderFlag.TF32)
    assert config.get_flag(library.BuilderFlag.STRICT_NANS)


@pytest.mark.parametrize("runtime", INSTALLED)
def test_several_profiles_make_one_engine(dense_dir: Path, tmp_path: Path, runtime: str) -> None:
    model = dense_dir / "assigner.onnx"
    requests = [SMALL, parse_profile(["B=1", "M=2", "A=21", "C=9"])]
    _, engine = build_engine(model, tmp_path / "new" / "folder", runtime=runtime, profiles=requests)
    contract = load_contract(dense_dir / "assigner.json")
    assert engine.profiles == tuple(resolve_profile(request, contract) for request in requests)


@pytest.mark.parametrize("runtime", INSTALLED)
def test_class_weights_and_regions_have_profiles(tmp_path: Path, runtime: str) -> None:
    folder = exported("loss_grad", "dense", **EVERY_INPUT)
    request = parse_profile(["B=1,2,4", "M=0,3,8", "I=0,2,5", "imgsz=64"])
    _, engine = build_engine(folder / "loss_grad.onnx", tmp_path, runtime=runtime, profiles=[request])
    assert [spec.name for spec in engine.inputs][-3:] == ["class_weights", "ignore_bboxes", "mask_ignore"]
    assert engine.profiles[0]["I"] == (0, 2, 5)
    builder = (library := load_library(runtime)).Builder(make_logger(library, BuildLog()))
    shapes = make_profile(builder, engine.inputs, engine.profiles[0])
    assert [tuple(shape) for shape in shapes.get_shape("ignore_bboxes")] == [(1, 0, 4), (2, 2, 4), (4, 5, 4)]
    assert [tuple(shape) for shape in shapes.get_shape("class_weights")] == [(1, 3), (2, 3), (4, 3)]


@pytest.fixture
def rtx() -> Any:
    return load_library("tensorrt-rtx")


def test_compute_capabilities_are_recorded(dense_dir: Path, tmp_path: Path) -> None:
    requested = ("8.9", "12.0", "8.9")
    model = dense_dir / "assigner.onnx"
    _, engine = build_engine(model, tmp_path, runtime="tensorrt-rtx", profiles=[SMALL], compute_capabilities=requested)
    assert engine.compute_capabilities == ("8.9", "12.0")


def test_compute_capabilities_reach_the_configuration(rtx: Any) -> None:
    members = capability_members(rtx, ["8.9", "12.0"])
    config = make_config(rtx, rtx.Builder(make_logger(rtx, BuildLog())), members)
    got = [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)]
    assert got == [rtx.ComputeCapability.SM89, rtx.ComputeCapability.SM120]


@pytest.mark.parametrize("capability", ["9.0", "SM89", "current", ""])
def test_an_unknown_compute_capability_is_refused(rtx: Any, capability: str) -> None:
    with pytest.raises(ValueError, match=rf"{capability!r} is unknown to TensorRT-RTX; choose among 7\.5, 8\.0.*12\.0"):
        capability_members(rtx, [capability])
