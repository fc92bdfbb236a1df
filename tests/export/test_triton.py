"""`yolo-assigner export triton`: the configurations, checked by the rules that Triton applies."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import tritonclient
from google.protobuf import text_format  # type: ignore[import-untyped]

from tests.conftest import KINDS
from yolo_assigner.export import cli
from yolo_assigner.export.contract import Contract, file_hash, load_contract
from yolo_assigner.export.to_tensorrt.contract import EngineContract, Profile, engine_stem
from yolo_assigner.export.to_triton.repository import quote, render_config


def _schema() -> Any:
    # The package around it wants grpc; the schema alone does not.
    path = Path(tritonclient.__path__[0], "grpc", "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCHEMA = _schema()


def read_config(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), SCHEMA.ModelConfig())


@pytest.fixture
def folder(artifacts_dir: Path, tmp_path: Path) -> Path:
    """A copy of the exported models to add to."""
    return Path(shutil.copytree(artifacts_dir, tmp_path / "artifacts"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Triton's model repository, not there yet."""
    return tmp_path / "models"


def lay_out(folder: Path, repository: Path, *words: str) -> int:
    return cli.main(["triton", str(folder), "--out", str(repository), *words])


def add_engine(folder: Path, name: str, profiles: Sequence[Profile], content: bytes = b"a plan") -> EngineContract:
    """An engine of tensorrt as far as its contract goes: a real one needs a GPU to be built and is only copied."""
    contract = load_contract(folder / f"{name}.json")
    stem = engine_stem(name, "tensorrt", "fp32")
    path = folder / "engines" / f"{stem}.engine"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    engine = EngineContract(
        name=name,
        file=path.name,
        sha256=file_hash(path),
        model_file=contract.file,
        model_sha256=contract.sha256,
        runtime="tensorrt",
        runtime_version="10.16.1",
        compute_capabilities=("9.0",),
        precision="fp32",
        profiles=tuple(profiles),
        inputs=contract.inputs,
        outputs=contract.outputs,
        build_seconds=1.0,
    )
    engine.save(path.with_name(f"{stem}.engine.json"))
    return engine


# What Triton does when it loads a model, after its `ValidateIOShape` (core) and `CompareDimsSupported` (backend of ONNX
# Runtime): shapes have axes, none of them 0; reshape is for models whose requests are merged; as many axes as the
# file, or [1] for a scalar; the same sizes where the file has fixed ones, and for outputs -1 just where it has none.


def triton_accepts(config: Any, session: ort.InferenceSession) -> None:
    types = {"TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)", "TYPE_BOOL": "tensor(bool)"}
    assert len(config.input) == len(session.get_inputs())
    for given, nodes, exact in (
        (config.input, session.get_inputs(), False),
        (config.output, session.get_outputs(), True),
    ):
        by_name = {node.name: node for node in nodes}
        for tensor in given:
            node = by_name[tensor.name]
            assert tensor.dims
            assert all(size == -1 or size >= 1 for size in tensor.dims)
            assert not tensor.HasField("reshape")
            assert types[SCHEMA.DataType.Name(tensor.data_type)] == node.type
            shape = [size if isinstance(size, int) else -1 for size in node.shape]
            if not shape:
                assert set(tensor.dims) == {1}
                continue
            assert len(shape) == len(tensor.dims)
            pairs = list(zip(shape, tensor.dims, strict=True))
            assert all(size == dim for size, dim in pairs if exact or size != -1), f"{tensor.name}: {pairs}"


@pytest.mark.parametrize("exported", ["artifacts_dir", "dense_dir"])
def test_triton_would_load_every_model(exported: str, repository: Path, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(exported)
    assert lay_out(folder, repository) == 0
    assert {path.name for path in repository.iterdir()} == set(KINDS)
    for name in KINDS:
        config = read_config(repository / name)
        assert (config.name, config.backend) == (name, "onnxruntime")
        model = repository / name / "1" / "model.onnx"
        assert model.read_bytes() == (folder / f"{name}.onnx").read_bytes()
        assert {path.name for path in (repository / name).rglob("*")} == {"1", "model.onnx", "config.pbtxt"}
        triton_accepts(config, ort.InferenceSession(model, providers=["CPUExecutionProvider"]))


def test_the_contract_is_all_there_in_full_shapes(folder: Path, repository: Path) -> None:
    assert lay_out(folder, repository, "--models", "loss", "assigner") == 0
    loss = read_config(repository / "loss")
    assert [(t.name, list(t.dims)) for t in loss.input] == [
        ("feat_0", [-1, 67, -1, -1]),  # 4 x 16 + 3 channels
        ("feat_1", [-1, 67, -1, -1]),
        ("feat_2", [-1, 67, -1, -1]),
        ("gt_labels", [-1, -1, 1]),
        ("gt_bboxes", [-1, -1, 4]),
        ("mask_gt", [-1, -1, 1]),
    ]
    dims = {t.name: list(t.dims) for t in loss.output}
    assert (dims["loss"], dims["loss_items"], dims["target_scores"]) == ([1], [3], [-1, -1, 3])
    assert {t.name: list(t.dims) for t in read_config(repository / "assigner").input}["anc_points"] == [-1, -1, 2]
    contract = load_contract(folder / "loss.json")
    parameters = {key: value.string_value for key, value in loss.parameters.items()}
    assert parameters["yolo_assigner.sha256"] == contract.sha256
    assert parameters["yolo_assigner.formulation"] == "sparse"


def test_no_model_has_its_requests_merged(folder: Path, repository: Path) -> None:
    # The loss divides by a sum over the batch: two requests in one would change each other's.
    assert lay_out(folder, repository) == 0
    for name in KINDS:
        config = read_config(repository / name)
        assert config.max_batch_size == 0
        assert config.WhichOneof("scheduling_choice") is None
        assert list(config.version_policy.specific.versions) == [1]


PROFILES: list[Profile] = [{"B": (1, 2, 4)}, {"B": (4, 16, 64)}]


def test_an_engine_is_taken_where_it_is_preferred_and_triton_can_load_it(
    folder: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_engine(folder, "assigner", PROFILES)
    add_engine(folder, "loss", PROFILES)
    assert lay_out(folder, repository) == 0
    assert read_config(repository / "assigner").backend == "onnxruntime"
    capsys.readouterr()
    assert lay_out(folder, repository, "--prefer", "tensorrt") == 0
    said = capsys.readouterr().out
    config = read_config(repository / "assigner")
    assert config.backend == "tensorrt"
    assert [path.name for path in (repository / "assigner" / "1").iterdir()] == ["model.plan"]
    # Triton takes profile 0 alone unless it is told of the others.
    assert [list(group.profile) for group in config.instance_group] == [["0", "1"]]
    assert config.parameters["yolo_assigner.tensorrt"].string_value == "10.16.1"
    assert "for a Triton with TensorRT 10.16.1" in said
    # Its TensorRT backend compares ranks, and the core refuses shapes without axes: no scalar comes through.
    assert read_config(repository / "loss").backend == "onnxruntime"
    assert "Triton loads no engine with a scalar, which loss is" in said
    assert "loss_grad (onnxruntime, loss_grad.onnx); it has no engine of tensorrt" in said


def test_one_profile_needs_no_mention(folder: Path, repository: Path) -> None:
    add_engine(folder, "assigner", PROFILES[:1])
    assert lay_out(folder, repository, "--prefer", "tensorrt", "--models", "assigner") == 0
    assert not read_config(repository / "assigner").instance_group


def test_an_engine_that_is_not_the_described_one_is_refused(
    folder: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = add_engine(folder, "assigner", PROFILES)
    (folder / "engines" / engine.file).write_bytes(b"another plan")
    assert lay_out(folder, repository, "--prefer", "tensorrt") == 2
    assert "is cut short or altered" in capsys.readouterr().err
    assert not repository.exists()


def test_bfloat16_is_refused_where_the_backend_does_not_know_it(
    folder: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contract = load_contract(folder / "loss.json")
    inputs = tuple(
        dataclasses.replace(spec, dtype="bfloat16") if spec.name.startswith("feat_") else spec
        for spec in contract.inputs
    )
    dataclasses.replace(contract, precision="bf16", inputs=inputs).save(folder / "loss.json")
    assert lay_out(folder, repository) == 2
    assert "loss takes feat_0 in bfloat16" in capsys.readouterr().err
    assert not repository.exists()
    assert lay_out(folder, repository, "--models", "assigner", "loss_grad") == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_every_type_has_triton_s_name(artifacts_dir: Path, dtype: str) -> None:
    contract: Contract = load_contract(artifacts_dir / "assigner.json")
    spec = dataclasses.replace(contract.inputs[0], dtype=dtype)
    config = text_format.Parse(render_config("a", "tensorrt", [spec], [], parameters={}), SCHEMA.ModelConfig())
    names = {"float16": "TYPE_FP16", "bfloat16": "TYPE_BF16", "int32": "TYPE_INT32"}
    assert SCHEMA.DataType.Name(config.input[0].data_type) == names[dtype]


@pytest.mark.parametrize("text", ['a "b"', "back\\slash", "line\nbreak", "ä ✓"])
def test_strings_come_back_as_they_were(text: str) -> None:
    config = text_format.Parse(f"name: {quote(text)}", SCHEMA.ModelConfig())
    assert config.name == text


def test_only_folders_of_its_own_are_replaced(
    folder: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = repository / "loss"
    (foreign / "1").mkdir(parents=True)
    (foreign / "1" / "model.onnx").write_bytes(b"somebody's")
    (repository / "other").mkdir()
    assert lay_out(folder, repository, "--models", "loss") == 2
    assert "was not written by `yolo-assigner export triton`" in capsys.readouterr().err
    assert (foreign / "1" / "model.onnx").read_bytes() == b"somebody's"
    assert lay_out(folder, repository, "--models", "loss", "--force") == 0
    (foreign / "stale").touch()
    assert lay_out(folder, repository, "--models", "loss") == 0  # now it is ours
    assert not (foreign / "stale").exists()
    assert {path.name for path in repository.iterdir()} == {"loss", "other"}
    assert {path.name for path in repository.parent.iterdir()} == {"artifacts", "models"}  # nothing is left beside it


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "nothing"], "no model 'nothing' in"),
        (["--out", "artifacts/loss.onnx/models"], "cannot be written"),
    ],
)
def test_what_cannot_be_laid_out_is_named(
    folder: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    assert lay_out(folder, repository, *words) == 2
    assert message in capsys.readouterr().err


def test_a_failed_copy_leaves_the_old_folder(folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lay_out(folder, repository, "--models", "assigner") == 0
    before = (repository / "assigner" / "1" / "model.onnx").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    assert lay_out(folder, repository, "--models", "assigner") == 2
    assert (repository / "assigner" / "1" / "model.onnx").read_bytes() == before
    assert {path.name for path in repository.parent.iterdir()} == {"artifacts", "models"}
