"""Parsing of profiles to the sizes of a model's inputs, and the way back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.export.engines import described
from yolo_assigner.export.contract import TensorSpec
from yolo_assigner.export.hyperparameters import Hyperparameters
from yolo_assigner.export.to_tensorrt.contract import profile_words
from yolo_assigner.export.to_tensorrt.profiles import default_profile, parse_profile, resolve_profile


def same(size: int) -> tuple[int, int, int]:
    return size, size, size


def test_default_sizes_of_the_loss() -> None:
    # 640 pixels over strides 8, 16, 32; without ground truth M is 0.
    profile = resolve_profile(default_profile(), described("loss"))
    sides = {"H0": 80, "W0": 80, "H1": 40, "W1": 40, "H2": 20, "W2": 20}
    assert profile == {"B": (1, 16, 64), "M": (0, 32, 300), **{axis: same(side) for axis, side in sides.items()}}


def test_default_sizes_of_the_assigner() -> None:
    # 80 * 80 + 40 * 40 + 20 * 20 anchors.
    profile = resolve_profile(default_profile(), described("assigner", Hyperparameters(num_classes=7)))
    assert profile == {"B": (1, 16, 64), "M": (0, 32, 300), "C": same(7), "S": (1, 1, 64), "A": same(8400)}


def test_maps_follow_from_images_that_are_not_square() -> None:
    request = parse_profile(["imgsz=64x96,128x192,256x640", "B=2", "M=1,2,3"])
    profile = resolve_profile(request, described("loss_grad"))
    assert (profile["B"], profile["M"]) == (same(2), (1, 2, 3))
    assert (profile["H0"], profile["W0"]) == ((8, 16, 32), (12, 24, 80))
    assert (profile["H2"], profile["W2"]) == ((2, 4, 8), (3, 6, 20))


def test_anchors_follow_from_images_or_are_named() -> None:
    assigner = described("assigner")
    # 32 pixels: 4 * 4 + 2 * 2 + 1.
    assert resolve_profile(parse_profile(["imgsz=32,64,640"]), assigner)["A"] == (21, 84, 8400)
    assert resolve_profile(parse_profile(["A=1,5,9", "C=2"]), assigner) == {
        "B": (1, 16, 64),
        "M": (0, 32, 300),
        "C": same(2),
        "S": (1, 1, 64),
        "A": (1, 5, 9),
    }
    assert resolve_profile(parse_profile(["B=2,4,8"]), assigner)["S"] == (1, 1, 8)  # points of each image, too


def test_a_model_of_images_has_axes_in_pixels() -> None:
    loss = described("loss")
    images = replace(loss, inputs=(TensorSpec("images", "float32", ("B", 3, "H", "W")), *loss.inputs[3:]))
    profile = resolve_profile(parse_profile(["imgsz=320x640"]), images)
    assert profile == {"B": (1, 16, 64), "M": (0, 32, 300), "H": same(320), "W": same(640)}
    assert resolve_profile(parse_profile(profile_words(profile)), images) == profile
    with pytest.raises(ValueError, match="imgsz 330 is no multiple of the stride 32; take 320 or 352"):
        resolve_profile(parse_profile(["H=330", "W=640"]), images)


def test_strides_are_the_models_own() -> None:
    loss = described("loss", Hyperparameters(strides=(8.0, 16.0, 32.0, 64.0)))
    assert resolve_profile(default_profile(), loss)["H3"] == same(10)
    with pytest.raises(ValueError, match="imgsz 96 is no multiple of the stride 64; take 64 or 128"):
        resolve_profile(parse_profile(["imgsz=96"]), loss)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("X=3", "'X=3' is not AXIS=SIZE"),
        ("B", "'B' needs one whole number"),
        ("B=", "'B=' needs one whole number"),
        ("B=two", "'B=two' needs one whole number, or three: smallest,usual,largest"),
        ("B=1.5", "'B=1.5' needs one whole number"),
        ("B=1,2", "'B=1,2' needs one whole number, or three"),
        ("B=1,2,3,4", "'B=1,2,3,4' needs one whole number, or three"),
        ("B=0", "'B=0' has the size 0; the smallest possible is 1"),
        ("M=-1", "'M=-1' has the size -1; the smallest possible is 0"),
        ("B=4,2,8", "'B=4,2,8' does not ascend"),
        ("B=1,9,8", "'B=1,9,8' does not ascend"),
        ("B=1 B=2", "'B=2' names B a second time"),
        ("imgsz=64 imgsz=96", "'imgsz=96' names imgsz a second time"),
        ("imgsz=64x", "'imgsz=64x' needs one"),
        ("imgsz=x64", "'imgsz=x64' needs one"),
        ("imgsz=64x64x64", "needs one whole number"),
        ("imgsz=0", "has the size 0"),
        ("imgsz=64x96,128x64,256x256", "does not ascend"),
    ],
)
def test_malformed_words_are_refused(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_profile(words.split())


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("loss", "A=8400", "loss has no axis A to choose a size of; it has B, H0"),
        ("loss", "C=80", "loss has no axis C"),
        ("assigner", "H0=80", "assigner has no axis H0 .* it has B, A, C, S, M, imgsz"),
        ("assigner", "A=8400 imgsz=640", "A follows from imgsz; name imgsz, or without it all of A"),
        ("loss", "H0=80", "H0 follows from imgsz; name imgsz, or without it all of H0, W0, H1, W1, H2, W2"),
        ("loss", "imgsz=650", "imgsz 650 is no multiple of the stride 32; take 640 or 672"),
        ("loss", "imgsz=640x20", "imgsz 20 is no multiple of the stride 32; take 32"),
    ],
)
def test_words_that_do_not_fit_the_model_are_refused(kind: str, words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_profile(parse_profile(words.split()), described(kind))


def test_an_axis_of_unknown_meaning_is_named() -> None:
    loss = described("loss")
    odd = replace(loss, inputs=(*loss.inputs, TensorSpec("more", "float32", ("B", "Q"))))
    with pytest.raises(ValueError, match=r"without a usual size.*: Q"):
        resolve_profile(default_profile(), odd)


@pytest.mark.parametrize("kind", ["assigner", "loss"])
@pytest.mark.parametrize("words", ["", "B=3 M=0,1,2 imgsz=64x32,96x640,640x640"])
def test_a_profile_as_words_is_the_same_profile(kind: str, words: str) -> None:
    contract = described(kind)
    profile = resolve_profile(parse_profile(words.split()), contract)
    # All axes are given, so a change of the defaults does not change a rebuilt engine.
    assert resolve_profile(parse_profile(profile_words(profile)), contract) == profile
    assert set(parse_profile(profile_words(profile)).sizes) == set(profile)
