"""The network: public parameter counts, names and shapes, connections of layers, export."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from yolo_assigner.models import DetectionModel, Detections, DetectorConfig, EndToEndDetections
from yolo_loss import EndToEndLoss, v8DetectionLoss

# Public model summaries of the five detectors with 80 classes.
PARAMETERS = {"n": 3_157_200, "s": 11_166_560, "m": 25_902_640, "l": 43_691_520, "x": 68_229_648}
# Of public summaries of the pyramid with stride 4.
P2_PARAMETERS = {"n": 3_354_144, "s": 10_884_336}
# Shapes of public n weights with 80 classes, one or more of each kind of layer.
N_SHAPES = {
    "model.0.conv.weight": (16, 3, 3, 3),
    "model.0.bn.running_var": (16,),
    "model.2.cv1.conv.weight": (32, 32, 1, 1),
    "model.2.m.0.cv1.conv.weight": (16, 16, 3, 3),
    "model.4.m.1.cv2.bn.num_batches_tracked": (),
    "model.8.cv2.conv.weight": (256, 384, 1, 1),
    "model.9.cv1.conv.weight": (128, 256, 1, 1),
    "model.9.cv2.conv.weight": (256, 512, 1, 1),
    "model.12.cv1.conv.weight": (128, 384, 1, 1),
    "model.15.cv1.conv.weight": (64, 192, 1, 1),
    "model.21.cv1.conv.weight": (256, 384, 1, 1),
    "model.22.cv2.0.0.conv.weight": (64, 64, 3, 3),
    "model.22.cv2.2.2.weight": (64, 64, 1, 1),
    "model.22.cv3.0.0.conv.weight": (80, 64, 3, 3),
    "model.22.cv3.0.2.bias": (80,),
    "model.22.dfl.conv.weight": (1, 16, 1, 1),
}


# The same for the pyramid with stride 4.
P2_SHAPES = {
    "model.9.cv2.conv.weight": (256, 512, 1, 1),
    "model.18.cv1.conv.weight": (32, 96, 1, 1),
    "model.21.cv1.conv.weight": (64, 96, 1, 1),
    "model.27.cv1.conv.weight": (256, 384, 1, 1),
    "model.28.cv2.0.0.conv.weight": (64, 32, 3, 3),
    "model.28.cv3.0.0.conv.weight": (80, 32, 3, 3),
    "model.28.cv3.3.0.conv.weight": (80, 256, 3, 3),
    "model.28.dfl.conv.weight": (1, 16, 1, 1),
}


@pytest.fixture(scope="module")
def tiny() -> DetectionModel:
    torch.manual_seed(0)
    return DetectionModel(DetectorConfig("n", nc=2)).eval()


def empty(config: DetectorConfig) -> DetectionModel:
    """Create a model without storage, for its shapes."""
    with torch.device("meta"):
        return DetectionModel(config)


def count(config: DetectorConfig) -> int:
    return sum(parameter.numel() for parameter in empty(config).parameters())


def shapes_of(config: DetectorConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in empty(config).state_dict().items()}


@pytest.mark.parametrize("scale", PARAMETERS)
def test_parameter_counts_are_the_public_ones(scale: str) -> None:
    parameters = list(empty(DetectorConfig(scale)).parameters())
    assert sum(parameter.numel() for parameter in parameters) == PARAMETERS[scale]
    # Only the 16 bin numbers are frozen.
    assert sum(parameter.numel() for parameter in parameters if not parameter.requires_grad) == 16


def test_names_and_shapes_are_those_of_public_state_dicts() -> None:
    shapes = shapes_of(DetectorConfig("n"))
    assert len(shapes) == 355
    assert {name: shapes.get(name) for name in N_SHAPES} == N_SHAPES
    layers = {int(name.split(".")[1]) for name in shapes}
    assert layers == set(range(23)) - {10, 11, 13, 14, 17, 20}


@pytest.mark.parametrize("scale", P2_PARAMETERS)
def test_the_pyramid_with_stride_4_has_the_public_parameter_count(scale: str) -> None:
    assert count(DetectorConfig(scale, pyramid="p2")) == P2_PARAMETERS[scale]


def test_the_pyramid_with_stride_4_has_public_names_and_shapes() -> None:
    shapes = shapes_of(DetectorConfig("n", pyramid="p2"))
    assert len(shapes) == 437
    assert {name: shapes.get(name) for name in P2_SHAPES} == P2_SHAPES


def test_the_pyramid_with_stride_64_has_a_stage_of_768_channels_before_that_of_1024() -> None:
    shapes = shapes_of(DetectorConfig("n", pyramid="p6"))
    # A quarter of 768 and of 1024; the head's last level is the coarsest.
    assert shapes["model.7.conv.weight"] == (192, 128, 3, 3)
    assert shapes["model.9.conv.weight"] == (256, 192, 3, 3)
    assert shapes["model.11.cv2.conv.weight"] == (256, 512, 1, 1)
    assert shapes["model.30.cv2.3.0.conv.weight"] == (64, 256, 3, 3)
    # Two stages more in the neck and one in the backbone, most of it at coarse levels with many channels.
    assert 1.4 < count(DetectorConfig("n", pyramid="p6")) / PARAMETERS["n"] < 1.8


def test_plain_distances_need_fewer_parameters() -> None:
    # 64 channels of box logits become 4: in the last convolution of each of the three levels, 60 x (64 + 1) fewer. No
    # bins are left, and as many hidden channels as for the class of features: max(16, 64 / 4, 4) = 16 in place of 64.
    def level(c_in: int, hidden: int, out: int) -> int:
        return 9 * c_in * hidden + 9 * hidden * hidden + 2 * 2 * hidden + (hidden + 1) * out

    fewer = sum(level(c, 64, 64) - level(c, 16, 4) for c in (64, 128, 256)) + 16
    assert count(DetectorConfig("n", reg_max=1)) == PARAMETERS["n"] - fewer


def test_a_second_branch_adds_the_head_once_more() -> None:
    single = empty(DetectorConfig("n")).head
    head = sum(parameter.numel() for parameter in single.parameters()) - 16  # the bins are shared
    assert count(DetectorConfig("n", end_to_end=True)) == PARAMETERS["n"] + head


def test_has_the_attributes_that_a_criterion_reads(tiny: DetectionModel) -> None:
    head: Any = tiny.model[-1]
    assert (head.nc, head.reg_max, head.no) == (2, 16, 66)
    assert head.stride.tolist() == [8, 16, 32]
    assert vars(tiny.args) == {"box": 7.5, "cls": 0.5, "dfl": 1.5}


def test_train_mode_gives_raw_maps_of_an_image_that_is_not_square() -> None:
    maps = DetectionModel(DetectorConfig("n", nc=2))(torch.rand(2, 3, 96, 64))
    assert [tuple(level.shape) for level in maps] == [(2, 66, 12, 8), (2, 66, 6, 4), (2, 66, 3, 2)]


def test_eval_mode_gives_predictions_too(tiny: DetectionModel) -> None:
    result = tiny(torch.rand(1, 3, 64, 96))
    assert isinstance(result, Detections)
    assert result.predictions.shape == (1, 6, 96 + 24 + 6)
    assert [tuple(level.shape[2:]) for level in result.maps] == [(8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize(("pyramid", "strides"), [("p5", (8, 16, 32)), ("p2", (4, 8, 16, 32)), ("p6", (8, 16, 32, 64))])
@pytest.mark.parametrize("reg_max", [16, 1])
@pytest.mark.parametrize("end_to_end", [False, True])
def test_every_head_on_every_pyramid(pyramid: str, strides: tuple[int, ...], reg_max: int, end_to_end: bool) -> None:
    model = DetectionModel(DetectorConfig("n", 2, reg_max, pyramid, end_to_end))
    assert model.stride.tolist() == list(strides)
    images = torch.rand(2, 3, 64, 128)
    shapes = [(2, 4 * reg_max + 2, 64 // stride, 128 // stride) for stride in strides]
    maps = model(images)
    for branch in maps.values() if end_to_end else (maps,):
        assert [tuple(level.shape) for level in branch] == shapes
    result = model.eval()(images)
    assert isinstance(result, EndToEndDetections if end_to_end else Detections)
    assert result.predictions.shape == (2, 6, sum(64 * 128 // stride**2 for stride in strides))


@pytest.mark.parametrize(
    "config",
    [
        DetectorConfig("n", 2, 1),
        DetectorConfig("n", 2, pyramid="p2"),
        DetectorConfig("n", 2, 1, end_to_end=True),
    ],
)
def test_the_loss_of_every_head_falls(config: DetectorConfig) -> None:
    torch.manual_seed(0)
    model = DetectionModel(config)
    criterion: nn.Module = v8DetectionLoss(model)
    if config.end_to_end:
        criterion = EndToEndLoss(config.nc, model.stride, config.reg_max, epochs=1)
    images = torch.rand(2, 3, 64, 64)
    batch = {"batch_idx": [0, 1], "cls": [0, 1], "bboxes": [[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.5, 0.5]]}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        loss, _items = criterion(model(images), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    # The output in eval mode is taken, too.
    assert criterion(model.eval()(images), batch)[0].isfinite()


@pytest.mark.parametrize(
    ("layer", "first", "second", "doubled"),
    [(12, 9, 6, True), (15, 12, 4, True), (18, 16, 12, False), (21, 19, 9, False)],
)
def test_layers_of_the_neck_concatenate_their_two_sources_in_order(
    tiny: DetectionModel, layer: int, first: int, second: int, doubled: bool
) -> None:
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}

    def record(index: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
            inputs[index], outputs[index] = given[0], result

        return hook

    handles = [module.register_forward_hook(record(index)) for index, module in enumerate(tiny.model)]
    tiny(torch.rand(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    upper = outputs[first].repeat_interleave(2, 2).repeat_interleave(2, 3) if doubled else outputs[first]
    assert torch.equal(inputs[layer], torch.cat((upper, outputs[second]), dim=1))


@pytest.mark.parametrize("config", [DetectorConfig("n", 2), DetectorConfig("n", 2, 1, "p6", end_to_end=True)])
def test_the_gradient_reaches_all_weights(config: DetectorConfig) -> None:
    model = DetectionModel(config)
    output: list[Tensor] | dict[str, list[Tensor]] = model(torch.rand(2, 3, 64, 64))
    maps = [level for branch in output.values() for level in branch] if isinstance(output, dict) else output
    torch.stack([level.square().mean() for level in maps]).sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


def test_the_pyramid_with_stride_64_needs_multiples_of_64() -> None:
    with pytest.raises(ValueError, match="96 x 64; resize or pad both sides to multiples of 64"):
        empty(DetectorConfig("n", pyramid="p6"))(torch.rand(1, 3, 96, 64, device="meta"))


@pytest.mark.parametrize("size", [(64, 65), (48, 64)])
def test_refuses_sizes_that_the_strides_do_not_divide(tiny: DetectionModel, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]}; resize or pad both sides to multiples of 32"):
        tiny(torch.rand(1, 3, *size))


@pytest.mark.parametrize("wrong", [{"scale": "xl"}, {"nc": 0}, {"reg_max": 0}, {"pyramid": "p7"}])
def test_config_refuses_invalid_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        DetectorConfig(**wrong)


def test_config_scales_depth_and_width() -> None:
    # m: 0.67 x 6 = 4.02 bottlenecks; 0.75 x min(1024, 768) = 576 channels.
    assert (DetectorConfig("m").depth(6), DetectorConfig("m").channels(1024)) == (4, 576)
    # n: 0.33 x 3 = 0.99 bottlenecks.
    assert DetectorConfig("n").depth(3) == 1
