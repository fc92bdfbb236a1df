"""Which profile a request gets, and the error when it fits none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.serve.conftest import graph_inputs, loss_inputs
from yolo_assigner.export.contract import load_contract
from yolo_assigner.export.to_tensorrt.contract import EngineContract, Profile
from yolo_assigner.serve.inference.runners.base import UnfitRequestError
from yolo_assigner.serve.inference.runners.profiles import choose_profile, dynamic_sizes


def engine(*profiles: Profile) -> EngineContract:
    """An engine of these profiles; nothing else of it matters here."""
    return EngineContract(
        name="loss",
        file="loss.tensorrt.fp32.engine",
        sha256="",
        model_file="loss.onnx",
        model_sha256="",
        runtime="tensorrt",
        runtime_version="11.4",
        compute_capabilities=(),
        precision="fp32",
        profiles=profiles,
        inputs=(),
        outputs=(),
        build_seconds=0.0,
    )


ONE, MANY = {"B": (1, 1, 4), "M": (1, 8, 64)}, {"B": (1, 32, 64), "M": (1, 32, 300)}


@pytest.mark.parametrize(
    ("sizes", "index"),
    [
        ({"B": 1, "M": 8}, 0),
        # Both take the next two. Every size plus one: 4/2 x 9/9 = 2 from the first, 33/4 x 33/9 = 30 from the second.
        ({"B": 3, "M": 8}, 0),
        # 5/2 x 65/9 = 18 from the first, 33/5 x 65/33 = 13 from the second.
        ({"B": 4, "M": 64}, 1),
        ({"B": 4, "M": 65}, 1),
        ({"B": 5, "M": 1}, 1),
        ({"B": 64, "M": 300}, 1),
    ],
)
def test_the_profile_with_the_nearest_usual_sizes(sizes: dict[str, int], index: int) -> None:
    assert choose_profile(engine(ONE, MANY), sizes) == index
    assert choose_profile(engine(MANY, ONE), sizes) == 1 - index


def test_sizes_of_an_axis_without_limits_do_not_matter() -> None:
    assert choose_profile(engine(ONE), {"B": 1, "M": 1, "C": 1000}) == 0


def test_a_refusal_names_axis_size_limits_and_a_command_that_helps() -> None:
    with pytest.raises(UnfitRequestError) as caught:
        choose_profile(engine(ONE), {"B": 5, "M": 3})
    assert str(caught.value) == (
        "axis B (images) is 5, but engine loss.tensorrt.fp32.engine takes 1 to 4; send other sizes, or have it rebuilt "
        "for these: `yolo-assigner export tensorrt loss.onnx --runtime tensorrt --precision fp32 "
        "--profile B=1,1,5 M=1,8,64`"
    )


def test_no_ground_truth_is_refused_when_an_engine_needs_a_slot() -> None:
    with pytest.raises(UnfitRequestError, match=r"axis M \(ground-truth slots\) is 0, .* 1 to 64;.* M=0,8,64"):
        choose_profile(engine(ONE), {"B": 1, "M": 0})
    assert choose_profile(engine({**ONE, "M": (0, 8, 64)}), {"B": 1, "M": 0}) == 0


def test_of_several_profiles_the_nearest_one_is_widened() -> None:
    """B 5 fits only the second, M 0 neither."""
    with pytest.raises(UnfitRequestError) as caught:
        choose_profile(engine(ONE, MANY), {"B": 5, "M": 0})
    assert "axis M (ground-truth slots) is 0" in str(caught.value)
    assert "axis B" not in str(caught.value)
    assert "--profile B=1,1,4 M=1,8,64 --profile B=1,32,64 M=0,32,300" in str(caught.value)


def test_every_axis_outside_is_named() -> None:
    with pytest.raises(UnfitRequestError, match=r"axis B \(images\) is 9, .*; axis M .* is 65, .*B=1,1,9 M=1,8,65"):
        choose_profile(engine(ONE), {"B": 9, "M": 65})


def test_sizes_by_letter(artifacts_dir: Path) -> None:
    loss = load_contract(artifacts_dir / "loss.json")
    sizes = {"B": 2, "M": 0, "H0": 8, "W0": 8, "H1": 4, "W1": 4, "H2": 2, "W2": 2}
    assert dynamic_sizes(loss.inputs, loss_inputs(images=2, slots=0)) == sizes
    assigner = load_contract(artifacts_dir / "assigner.json")
    arrays = graph_inputs(images=1, slots=3, classes=5)
    assert dynamic_sizes(assigner.inputs, arrays) == {"B": 1, "S": 1, "A": 84, "C": 5, "M": 3}
    assert dynamic_sizes(assigner.inputs, {**arrays, "gt_labels": np.zeros((1, 3, 1))})["M"] == 3
