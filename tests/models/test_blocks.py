"""The blocks on hand-computed examples."""

import torch
from torch import Tensor, nn

from yolo_assigner.models.blocks import DFL, SPPF, C2f, Conv


class TimesTen(nn.Module):
    """Replacement of a bottleneck."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by ten."""
        return 10 * x


def test_conv_halves_the_size_and_rounds_up_at_stride_2() -> None:
    assert Conv(3, 5, kernel=3, stride=2)(torch.rand(2, 3, 7, 10)).shape == (2, 5, 4, 5)
    assert Conv(3, 5, kernel=3)(torch.rand(2, 3, 7, 10)).shape == (2, 5, 7, 10)


def test_conv_normalizes_as_the_public_weights_expect() -> None:
    norm = Conv(1, 1).bn
    assert (norm.eps, norm.momentum) == (1e-3, 0.03)


def test_c2f_keeps_both_halves_and_every_stage() -> None:
    block = C2f(2, 2, depth=2, shortcut=False)
    block.cv1, block.cv2 = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    block.m = nn.ModuleList((TimesTen(), TimesTen()))
    # The halves are 3 and 5; the bottlenecks process the second, one after the other.
    assert block(torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)).flatten().tolist() == [3, 5, 50, 500]


def test_sppf_pools_once_twice_and_three_times() -> None:
    block = SPPF(2, 2)
    block.cv1, block.cv2 = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    impulse = torch.zeros(1, 1, 15, 15)
    impulse[0, 0, 7, 7] = 1.0
    # A window of 5 spreads one cell to 5 x 5, again to 9 x 9, again to 13 x 13.
    assert block(impulse).sum(dim=(0, 2, 3)).tolist() == [1, 25, 81, 169]


def test_dfl_is_the_expected_bin_side_by_side() -> None:
    logits = torch.full((1, 16, 1), -1000.0)  # R = 4, all probability where it is raised
    logits[0, [0, 4 + 3, 8 + 1, 8 + 2, 12], 0] = 0.0
    # left: bin 0; top: bin 3; right: bins 1 and 2 equally likely, so 1.5; bottom: bin 0.
    assert DFL(4)(logits).flatten().tolist() == [0, 3, 1.5, 0]


def test_dfl_does_not_learn_its_bin_numbers() -> None:
    assert [parameter.requires_grad for parameter in DFL(16).parameters()] == [False]
