"""The head: its raw maps and their decoding."""

import pytest
import torch

from yolo_assigner.models.head import Detect, Detections


def make_head(nc: int, reg_max: int) -> Detect:
    return Detect((8, 8, 8), nc, reg_max).eval()


def make_maps(head: Detect) -> list[torch.Tensor]:
    """Return maps of zeros for an image 64 wide and 32 high."""
    return [torch.zeros(1, head.no, 32 // stride, 64 // stride) for stride in (8, 16, 32)]


def test_strides_follow_the_module_but_stay_out_of_the_state_dict() -> None:
    head = make_head(nc=2, reg_max=4)
    assert head.stride.tolist() == [8, 16, 32]
    assert "stride" not in head.state_dict()
    assert head.to("meta").stride.device.type == "meta"


def test_box_channels_come_before_class_channels() -> None:
    head = make_head(nc=3, reg_max=4)
    maps = head.train()([torch.zeros(1, 8, 4, 8), torch.zeros(1, 8, 2, 4), torch.zeros(1, 8, 1, 2)])
    assert head.no == 19
    assert [tuple(level.shape) for level in maps] == [(1, 19, 4, 8), (1, 19, 2, 4), (1, 19, 1, 2)]
    # For features of zero an untrained head outputs nearly its biases: 1 for boxes and a small prior for classes,
    # log(5 / 3 / 80^2) = -8.25 at stride 8 and log(5 / 3 / 20^2) = -5.48 at stride 32.
    assert maps[0][0, :16].mean().item() == pytest.approx(1.0)
    assert maps[0][0, 16:].mean().item() == pytest.approx(-8.253, abs=1e-3)
    assert maps[2][0, 16:].mean().item() == pytest.approx(-5.481, abs=1e-3)


def test_decodes_distances_to_pixels() -> None:
    head = make_head(nc=2, reg_max=1)
    maps = make_maps(head)
    # Level 0 is 4 x 8 cells of 8 pixels. Cell x = 1, y = 2 has its point at (1.5, 2.5). The distances 2, 1, 4, 3
    # give the corners (-0.5, 1.5) and (5.5, 5.5): centre (2.5, 3.5), sides 6 x 4; times 8 pixels.
    maps[0][0, :, 2, 1] = torch.tensor([2.0, 1.0, 4.0, 3.0, 0.0, 1000.0])
    predictions = head.decode(maps)
    assert predictions.shape == (1, 6, 32 + 8 + 2)
    assert predictions[0, :, 2 * 8 + 1].tolist() == [20, 28, 48, 32, 0.5, 1]


def test_decodes_distributions_and_orders_levels() -> None:
    head = make_head(nc=1, reg_max=16)
    predictions = head.decode(make_maps(head))
    # All bins are equally likely: the mean of 0..15 is 7.5 on every side, so boxes have sides of 15 cells.
    first, last = predictions[0, :, 0], predictions[0, :, -1]
    assert first.tolist() == pytest.approx([4, 4, 120, 120, 0.5], abs=1e-4)
    assert last.tolist() == pytest.approx([48, 16, 480, 480, 0.5], abs=1e-3)


def test_eval_mode_gives_predictions_with_the_same_maps() -> None:
    head = make_head(nc=2, reg_max=4)
    features = [torch.rand(2, 8, 4, 4), torch.rand(2, 8, 2, 2), torch.rand(2, 8, 1, 1)]
    result = head(features)
    assert isinstance(result, Detections)
    assert result.predictions.shape == (2, 6, 21)
    assert torch.equal(result.predictions, head.decode(result.maps))


def test_half_precision_maps_are_decoded_in_float32() -> None:
    head = make_head(nc=1, reg_max=1)
    maps = [level.half() for level in make_maps(head)]
    assert head.decode(maps).dtype == torch.float32
