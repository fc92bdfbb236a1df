"""Loading weights from files, and the errors for unusable files."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from yolo_assigner.models import DetectionModel, DetectorConfig, load_checkpoint, read_state_dict


def make_layer(value: float) -> nn.Linear:
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, value)
    return layer


def values(module: nn.Module) -> list[float]:
    return [float(number) for tensor in module.state_dict().values() for number in tensor.flatten()]


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_loads_a_whole_detector_from_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = (DetectionModel(DetectorConfig("n", nc=1)).eval() for _ in range(2))
    images = torch.rand(1, 3, 32, 32)
    assert not torch.equal(source(images).predictions, target(images).predictions)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "n.safetensors")
    load_checkpoint(target, tmp_path / "n.safetensors")
    assert torch.equal(source(images).predictions, target(images).predictions)


def test_loads_a_detector_with_other_heads(tmp_path: Path) -> None:
    config = DetectorConfig("n", 1, 1, "p2", end_to_end=True)
    source, target = (DetectionModel(config).eval() for _ in range(2))
    safetensors.torch.save_file(source.state_dict(), tmp_path / "n.safetensors")
    load_checkpoint(target, tmp_path / "n.safetensors")
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(source(images).predictions, target(images).predictions)
    with pytest.raises(ValueError, match=r"pyramid and end_to_end:\n  unexpected: model\.28\.one2one_cv2"):
        load_checkpoint(DetectionModel(DetectorConfig("n", 1, 1, "p2")), tmp_path / "n.safetensors")


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_loads_a_torch_file_bare_or_wrapped(tmp_path: Path, wrapper: str | None) -> None:
    state: dict[str, Tensor] = make_layer(0.5).state_dict()
    layer = make_layer(0.0)
    load_checkpoint(layer, write(tmp_path / "w.pt", state if wrapper is None else {"epoch": 3, wrapper: state}))
    assert values(layer) == [0.5, 0.5, 0.5]


def test_converts_half_precision(tmp_path: Path) -> None:
    layer = make_layer(0.0)
    load_checkpoint(layer, write(tmp_path / "w.pt", make_layer(0.25).half().state_dict()))
    assert layer.weight.dtype == torch.float32
    assert values(layer) == [0.25, 0.25, 0.25]


def test_lists_every_name_that_does_not_fit_and_changes_nothing(tmp_path: Path) -> None:
    layer = make_layer(0.0)
    path = write(tmp_path / "w.pt", {"weight": torch.ones(1, 3), "scale": torch.ones(1), "shift": torch.ones(1)})
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_checkpoint(layer, path)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: bias",
        "  unexpected: scale",
        "  unexpected: shift",
        "  wrong shape: weight is (1, 3), the model has (1, 2)",
    ]
    assert values(layer) == [0, 0, 0]


def test_refuses_a_pickled_module_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"save only the weights: torch\.save"):
        read_state_dict(write(tmp_path / "w.pt", {"model": make_layer(1.0)}))


@pytest.mark.parametrize("content", [[torch.ones(1)], {"model": {"weight": 3.0}}, {"weight": torch.ones(1), "lr": 0.1}])
def test_refuses_content_other_than_a_dict_of_tensors(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError, match="holds no dict of tensors"):
        read_state_dict(write(tmp_path / "w.pt", content))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x02}\xff"])
def test_refuses_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_missing_file_raises_file_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / name)
