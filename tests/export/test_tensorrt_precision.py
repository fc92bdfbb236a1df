"""Engines that take predictions or images in 16 bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest

from tests.export.engines import INSTALLED, SMALL
from yolo_assigner.export.contract import TensorSpec, file_hash, load_contract
from yolo_assigner.export.to_onnx.precision import narrow
from yolo_assigner.export.to_tensorrt.build import build_engine

NARROWED = {"assigner": {"pd_scores"}, "loss": {"feat_0", "feat_1", "feat_2"}}


@pytest.mark.parametrize(
    ("precision", "dtype", "kinds"), [("fp16", "float16", ["assigner", "loss"]), ("bf16", "bfloat16", ["assigner"])]
)
@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_narrow_engine_takes_predictions_in_that_type(
    dense_dir: Path, tmp_path: Path, runtime: str, precision: str, dtype: str, kinds: list[str]
) -> None:
    for kind in kinds:
        model = load_contract(dense_dir / f"{kind}.json")
        path, engine = build_engine(
            dense_dir / f"{kind}.onnx", tmp_path, runtime=runtime, precision=precision, profiles=[SMALL]
        )
        # The build itself compares these types with those of the network.
        types = [dtype if spec.name in NARROWED[kind] else spec.dtype for spec in model.inputs]
        assert [spec.dtype for spec in engine.inputs] == types
        assert engine.outputs == model.outputs
        assert (path.name, engine.precision) == (f"{kind}.{runtime}.{precision}.engine", precision)
        # The engine refers to the float32 file, which a server finds beside its contract.
        assert engine.model_sha256 == model.sha256


def test_a_model_in_a_narrow_precision_keeps_it(dense_dir: Path, tmp_path: Path) -> None:
    contract = load_contract(dense_dir / "assigner.json")
    model, narrowed = narrow(onnx.load(dense_dir / "assigner.onnx"), contract, "fp16")
    path = tmp_path / "half.onnx"
    onnx.save(model, path)
    dataclasses.replace(narrowed, name="half", file=path.name, sha256=file_hash(path)).save(tmp_path / "half.json")
    _, engine = build_engine(path, tmp_path, runtime="tensorrt-rtx", profiles=[SMALL])
    assert (engine.file, engine.precision) == ("half.tensorrt-rtx.fp16.engine", "fp16")
    with pytest.raises(ValueError, match="half is in fp16, fp32 needs the model in fp32"):
        build_engine(path, tmp_path, runtime="tensorrt-rtx", precision="fp32")


@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_detector_is_sized_in_pixels(dense_detector_dir: Path, tmp_path: Path, runtime: str) -> None:
    model = dense_detector_dir / "detector_loss.onnx"
    path, engine = build_engine(model, tmp_path, runtime=runtime, precision="fp16", profiles=[SMALL])
    assert engine.profiles == ({"B": (1, 2, 4), "M": (0, 3, 8), "H": (64, 96, 128), "W": (64, 96, 128)},)
    assert engine.inputs[0] == TensorSpec("images", "float16", ("B", 3, "H", "W"))
    assert path.stat().st_size > 2**20
