"""The head: its raw maps and their decoding."""

import pytest
import torch
from torch import Tensor

from yolo_assigner.models.head import Detect, Detections, EndToEndDetections


def make_head(nc: int, reg_max: int) -> Detect:
    return Detect((8, 8, 8), nc, reg_max).eval()


def make_maps(head: Detect) -> list[Tensor]:
    """Return maps of zeros for an image 64 wide and 32 high."""
    return [torch.zeros(1, head.no, 32 // stride, 64 // stride) for stride in (8, 16, 32)]


def make_two_branches() -> Detect:
    """Return a head of two levels and two branches, the second with other weights than the first."""
    torch.manual_seed(0)
    head = Detect((8, 8), 2, 1, (4, 16), end_to_end=True)
    for parameter in (*head.one2one_cv2.parameters(), *head.one2one_cv3.parameters()):
        torch.nn.init.normal_(parameter)
    return head


def make_features() -> list[Tensor]:
    return [torch.rand(2, 8, 8, 4, requires_grad=True), torch.rand(2, 8, 2, 1, requires_grad=True)]


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


def test_decodes_with_its_own_strides() -> None:
    head = Detect((8, 8), 1, 1, (4, 64))
    assert head.stride.tolist() == [4, 64]
    maps = [torch.ones(1, 5, 16, 16), torch.ones(1, 5, 1, 1)]
    # Distances of 1 cell on all sides: 8 and 128 pixels about the centres 2 and 32.
    predictions = head.decode(maps)
    assert predictions[0, :4, 0].tolist() == [2, 2, 8, 8]
    assert predictions[0, :4, -1].tolist() == [32, 32, 128, 128]


def test_plain_distances_have_no_limit_and_keep_their_sign() -> None:
    head = make_head(nc=1, reg_max=1)
    maps = make_maps(head)
    maps[2][0, :4, 0, 0] = torch.tensor([-0.25, 0.0, 30.0, 2.0])
    # The point is (0.5, 0.5) at stride 32: x from 0.75 to 30.5, y from 0.5 to 2.5.
    assert head.decode(maps)[0, :4, -2].tolist() == [500, 48, 952, 64]


def test_two_branches_begin_equal_and_share_no_weight() -> None:
    head = Detect((8, 8, 8), 2, 4, end_to_end=True)
    own, other = ([*getattr(head, f"{prefix}cv2").parameters()] for prefix in ("", "one2one_"))
    assert all(torch.equal(a, b) and a is not b for a, b in zip(own, other, strict=True))
    # The second branch draws no random numbers, so a head with one branch begins with the same weights.
    single = Detect((8, 8, 8), 2, 4).state_dict()
    assert {name for name in head.state_dict() if not name.startswith("one2one_")} == set(single)


def test_train_mode_gives_the_maps_of_both_branches() -> None:
    head = make_two_branches()
    both = head(make_features())
    assert list(both) == ["one2many", "one2one"]
    for maps in both.values():
        assert [tuple(level.shape) for level in maps] == [(2, 6, 8, 4), (2, 6, 2, 1)]
    assert not torch.equal(both["one2many"][0], both["one2one"][0])


def test_the_gradient_of_the_one_to_one_branch_stops_at_the_features() -> None:
    head, features = make_two_branches(), make_features()
    both = head(features)
    torch.stack([level.square().sum() for level in both["one2one"]]).sum().backward()
    assert [x.grad for x in features] == [None, None]
    assert all(parameter.grad is not None for parameter in head.one2one_cv3.parameters())
    assert all(parameter.grad is None for parameter in head.cv3.parameters())
    torch.stack([level.square().sum() for level in both["one2many"]]).sum().backward()
    assert all(x.grad is not None and x.grad.any() for x in features)


def test_eval_mode_decodes_the_one_to_one_branch() -> None:
    head, features = make_two_branches().eval(), make_features()
    result = head(features)
    assert isinstance(result, EndToEndDetections)
    assert result.predictions.shape == (2, 6, 34)
    assert torch.equal(result.predictions, head.decode(result.maps["one2one"]))
    assert not torch.equal(result.predictions, head.decode(result.maps["one2many"]))
