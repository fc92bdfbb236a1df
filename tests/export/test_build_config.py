"""The file of `yolo-assigner export all`: what it may contain, and the error for each mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from yolo_assigner.export import cli
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.repository.config import BuildConfig, load_config
from yolo_assigner.export.repository.plan import EngineTarget, OnnxTarget, plan_targets

Load = Callable[[str], BuildConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Read a file of this text."""

    def read(text: str) -> BuildConfig:
        path = tmp_path / "build.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path)

    return read


def labels(config: BuildConfig) -> list[str]:
    return [target.label for target in plan_targets(config)]


def test_a_table_is_the_product_of_its_lists(load: Load) -> None:
    text = """
        [[models]]
        kinds = ["assigner", "loss"]
        num_classes = [80, 365]
        precisions = ["fp32", "fp16"]
    """
    # 2 kinds x 2 class counts x 2 precisions, for ONNX Runtime alone
    expected = [
        f"{kind}-c{classes}{precision}.onnx"
        for kind in ("assigner", "loss")
        for classes in (80, 365)
        for precision in ("", "-fp16")
    ]
    assert labels(load(text)) == expected


def test_engines_come_after_a_dense_model_of_their_precision(load: Load) -> None:
    # One dense model serves both runtimes; ONNX Runtime gets a sparse one of another name.
    text = """
        [[models]]
        kinds = ["loss"]
        precisions = ["fp16"]
        targets = ["tensorrt-rtx", "onnxruntime", "tensorrt"]
        compute_capabilities = ["8.9"]
    """
    targets = plan_targets(load(text))
    assert [target.label for target in targets] == [
        "loss-c80-fp16.onnx",
        "loss-c80-fp16-dense.onnx",
        "loss-c80-fp16-dense.tensorrt.fp16.engine",
        "loss-c80-fp16-dense.tensorrt-rtx.fp16.engine",
    ]
    models = [target for target in targets if isinstance(target, OnnxTarget)]
    engines = [target for target in targets if isinstance(target, EngineTarget)]
    assert [model.implementation for model in models] == ["sparse", "dense"]
    assert all(engine.model == models[1] for engine in engines)
    # The other runtime builds for the GPU that it finds.
    assert [engine.compute_capabilities for engine in engines] == [(), ("8.9",)]


def test_profiles_of_the_file_are_for_all_tables_that_name_none(load: Load) -> None:
    text = """
        [profiles]
        train = ["B=8,16,32", "imgsz=640"]
        audit = ["B=1", "imgsz=1280"]
        [[models]]
        kinds = ["loss"]
        targets = ["tensorrt-rtx"]
        [[models]]
        kinds = ["assigner"]
        targets = ["tensorrt-rtx"]
        profiles = ["audit"]
    """
    engines = [target for target in plan_targets(load(text)) if isinstance(target, EngineTarget)]
    assert [len(engine.profiles) for engine in engines] == [2, 1]
    assert engines[0].profiles[0]["H0"] == (80, 80, 80)  # 640 pixels over the stride 8
    assert engines[1].profiles[0]["A"] == (160**2 + 80**2 + 40**2,) * 3


def test_hyperparameters_of_a_table_stand_over_those_of_the_file(load: Load) -> None:
    text = """
        [hyperparameters]
        topk = 7
        beta = 4
        [[models]]
        kinds = ["loss"]
        num_classes = [5]
        [models.hyperparameters]
        topk = 13
        gains = [1, 2, 3]
    """
    (target,) = plan_targets(load(text))
    assert isinstance(target, OnnxTarget)
    # Whole numbers are numbers; the file cannot know that a field is a float.
    assert target.hyperparameters == Hyperparameters(num_classes=5, topk=13, beta=4.0, gains=(1.0, 2.0, 3.0))


def test_a_detector_is_named_by_its_scale_and_found_beside_the_file(load: Load, tmp_path: Path) -> None:
    text = """
        [[models]]
        kinds = ["detector_loss", "loss"]
        num_classes = [1]
        prefix = "trees"
        scale = "n"
        weights = "runs/trees.safetensors"
    """
    detector, loss = plan_targets(load(text))
    assert isinstance(detector, OnnxTarget)
    assert isinstance(loss, OnnxTarget)
    assert (detector.name, detector.weights) == ("trees-detector_loss-n-c1", tmp_path / "runs" / "trees.safetensors")
    assert (loss.name, loss.weights, loss.hyperparameters.scale) == ("trees-loss-c1", None, None)


def test_equal_artefacts_of_two_tables_are_one(load: Load) -> None:
    text = """
        [[models]]
        kinds = ["loss"]
        [[models]]
        kinds = ["loss", "assigner"]
    """
    assert labels(load(text)) == ["loss-c80.onnx", "assigner-c80.onnx"]


def test_one_name_for_two_artefacts_is_refused(load: Load) -> None:
    text = """
        [[models]]
        kinds = ["loss"]
        [[models]]
        kinds = ["loss"]
        hyperparameters = { topk = 13 }
    """
    with pytest.raises(ValueError, match=r"number 2: another table builds loss-c80\.onnx otherwise; .* a prefix"):
        plan_targets(load(text))
    assert labels(load(text.replace("hyper", 'prefix = "wide"\n        hyper'))) == [
        "loss-c80.onnx",
        "wide-loss-c80.onnx",
    ]


def test_a_profile_that_fits_no_model_is_refused_before_anything_is_built(load: Load) -> None:
    text = """
        profiles = { small = ["A=8400"] }
        [[models]]
        kinds = ["loss"]
        targets = ["tensorrt-rtx"]
    """
    with pytest.raises(ValueError, match=r"number 1: loss-c80-dense has no axis A to choose"):
        plan_targets(load(text))


MODEL = '[[models]]\nkinds = ["loss"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kinds =", "cannot be read as TOML"),
        ("", "models is empty, nothing would be built; write a [[models]] table"),
        ("[[models]]", "number 1 has no kinds; write kinds = ..."),
        ("models = []", "models is empty"),
        ("models = [3]", "number 1 is 3, expected a table"),
        (f'output = "x"\n{MODEL}', "key 'output' is unknown; did you mean 'out'?"),
        (f"out = 3\n{MODEL}", "out is 3, expected a string"),
        ('[[models]]\nkind = ["loss"]', "key 'kind' is unknown; did you mean 'kinds'?"),
        ('[[models]]\nkinds = "loss"', "kinds is 'loss', expected a list of strings"),
        ("[[models]]\nkinds = []", "kinds is empty"),
        ('[[models]]\nkinds = ["los"]', "kinds: 'los' is unknown; did you mean 'loss'?"),
        (f"{MODEL}num_classes = [80.5]", "num_classes, entry 1 is 80.5, expected a whole number"),
        (f"{MODEL}num_classes = [true]", "num_classes, entry 1 is True, expected a whole number"),
        (f"{MODEL}num_classes = [0]", "num_classes has 0"),
        (f"{MODEL}num_classes = []", "num_classes is empty"),
        (f'{MODEL}precisions = ["int8"]', "precisions: 'int8' is unknown; choose among fp32, fp16, bf16"),
        (f'{MODEL}targets = ["cuda"]', "targets: 'cuda' is unknown; choose among onnxruntime, tensorrt, tensorrt-rtx"),
        (f'{MODEL}prefix = "a/b"', "prefix is 'a/b'"),
        (f'{MODEL}profiles = ["big"]', "profiles: 'big' is unknown; choose among none"),
        (f'{MODEL}compute_capabilities = ["8.9"]', "compute_capabilities are for tensorrt-rtx"),
        (f'{MODEL}weights = "a.pt"', "weights is 'a.pt', but only detector_loss and detector_explain have a detector"),
        ('[[models]]\nkinds = ["detector_loss"]\nscale = "n"', 'write weights = "FILE"'),
        (
            '[[models]]\nkinds = ["loss"]\nhyperparameters = { end_to_end = true }',
            "end_to_end is set, but loss has no detector; give detector_loss a [[models]] table of its own",
        ),
        (f"[profiles]\nbig = []\n{MODEL}", "profiles.big is [], expected a list of words"),
        (f'[profiles]\nbig = ["B=4,2,1"]\n{MODEL}', "profiles.big: profile word 'B=4,2,1' does not ascend"),
        (f"[hyperparameters]\ntopq = 3\n{MODEL}", "key 'topq' is unknown; did you mean 'topk'?"),
        (f'[hyperparameters]\ntopk = "3"\n{MODEL}', "topk is '3', expected a whole number"),
        (f'[hyperparameters]\npreset = "v9"\n{MODEL}', "preset is 'v9', expected one of yolov8"),
        (f"[hyperparameters]\nnum_classes = 3\n{MODEL}", "write it in the [[models]] table itself"),
    ],
)
def test_mistakes_are_named_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "build.toml"
    path.write_text(text, encoding="utf-8")
    assert cli.main(["all", "--config", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_the_documentation_s_example_is_one(load: Load) -> None:
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    found = labels(load(text.split("```toml")[1].split("```")[0]))
    # 3 kinds x 2 class counts x 2 precisions, each sparse, dense and an engine; and the detector
    assert len(found) == 3 * 2 * 2 * 3 + 1
    assert "loss-c80-fp16-dense.tensorrt-rtx.fp16.engine" in found
    assert "trees-detector_loss-n-c1.onnx" in found


def test_a_missing_file_and_a_missing_folder_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "build.toml"
    assert cli.main(["all", "--config", str(path)]) == 2
    path.write_text(MODEL, encoding="utf-8")
    assert cli.main(["all", "--config", str(path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "cannot be read as TOML" in errors[0]
    assert "names no folder to build into" in errors[1]
