"""First steps on the command line: help with examples, and models for another runtime."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from yolo_assigner.export import cli
from yolo_assigner.export.contract import Contract
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.to_onnx.command import export_command


@pytest.mark.parametrize("command", ["onnx", "tensorrt", "verify", "all", "triton"])
def test_help_ends_with_examples_that_are_accepted(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    examples = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    assert examples
    for example in examples:
        program, export, *words = shlex.split(example)
        assert (program, export, words[0]) == ("yolo-assigner", "export", command)
        cli.build_parser().parse_args(words)


def test_help_does_not_load_torch() -> None:
    code = "import sys, yolo_assigner.export.cli as cli; cli.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize("words", ["--for tensorrt --implementation sparse", "--for cuda"])
def test_contradictions_are_refused(tmp_path: Path, words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["onnx", "--model", "assigner", "--out", str(tmp_path), *words.split()])
    assert ended.value.code == 2


def test_a_sparse_model_is_refused_with_the_command_for_a_dense_one(
    artifacts_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(artifacts_dir, tmp_path / "my models"))
    assert cli.main(["tensorrt", str(folder / "loss.onnx")]) == 2
    error = capsys.readouterr().err
    assert "has the sparse implementation, which TensorRT cannot express; make one that it can with `" in error
    command = "yolo-assigner export onnx --model loss --for tensorrt --name loss-dense"
    assert f"`{command} --out '{folder}' --num-classes 3`" in error


def contract_of(kind: str, hyperparameters: Hyperparameters, precision: str = "fp32") -> Contract:
    return Contract(
        kind, kind, f"{kind}.onnx", "", "sparse", hyperparameters.as_contract(), (), (), {}, precision=precision
    )


@pytest.mark.parametrize(
    "hyperparameters",
    [
        Hyperparameters(),
        Hyperparameters(preset="ultralytics-8.4"),
        Hyperparameters(preset="ultralytics-8.4", min_box_side=3.0, strides=(8.0, 16.0), topk2=1),
        Hyperparameters(num_classes=3, reg_max=8, topk=13, alpha=1.0, beta=5.5, eps=1e-7, gains=(1.0, 2.0, 3.25)),
        Hyperparameters(class_loss="varifocal", scale="s"),
        Hyperparameters(scale="s", end_to_end=True),
        Hyperparameters(scale="s", end_to_end=True, one2many_share=0.1, topk2_one2one=2),
    ],
)
def test_the_command_for_another_runtime_keeps_all_options(hyperparameters: Hyperparameters) -> None:
    contract = contract_of("detector_loss" if hyperparameters.scale else "loss", hyperparameters, "fp16")
    program, export, *words = shlex.split(export_command(contract, "tensorrt", "other", Path("a b")))
    options = cli.build_parser().parse_args(words)
    assert (program, export, options.model, options.name) == ("yolo-assigner", "export", contract.kind, "other")
    assert (options.runtime, options.out, options.precision) == ("tensorrt", Path("a b"), "fp16")
    assert (options.weights == Path("FILE")) is (hyperparameters.scale is not None)
    names = [field.name for field in dataclasses.fields(Hyperparameters)]
    again = Hyperparameters(**{name: getattr(options, name) for name in names})
    assert again.as_contract() == hyperparameters.as_contract()
    # What is a default is not spelled out.
    assert "--alpha" in words or hyperparameters.alpha == 0.5
    assert ("--one2many-share" in words) == (hyperparameters.one2many_share is not None)
