"""``python -m benchmarks.step`` on small inputs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.step import BOXES, PARTS, REFERENCE, Case, Trainer, main, make_batch, make_detector, make_loss
from yolo_loss.boxes import xywh2xyxy

CASE = Case("v8n", 64, 2, 30)
HOST = torch.device("cpu")


@pytest.mark.parametrize("name", ["auto", "dense", REFERENCE])
@pytest.mark.parametrize("detector", ["v8n", f"v8n of the {REFERENCE}"])
def test_a_step_trains_like_one_backward_pass(name: str, detector: str) -> None:
    if importlib.util.find_spec("ultralytics") is None and REFERENCE in (name, detector.rsplit(maxsplit=1)[-1]):
        pytest.skip("ultralytics is not installed")
    case = CASE._replace(detector=detector)
    measured = Trainer(case, [name], HOST)
    times = measured.step(name)
    assert len(times) == len(PARTS)
    assert min(times) > 0

    torch.manual_seed(0)
    plain = make_detector(detector).train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
    output = plain(torch.rand(2, 3, 64, 64))
    if name == REFERENCE and REFERENCE not in detector:
        joined = torch.cat([level.flatten(2) for level in output], dim=2)
        output = {"boxes": joined[:, :64], "scores": joined[:, 64:], "feats": output}
    make_loss(name, plain)(output, make_batch(2, 30))[0].sum().backward()
    optimizer.step()
    before = flat(Trainer(case, [], HOST).detector)
    moved, wanted = flat(measured.detector) - before, flat(plain) - before
    assert wanted.norm() > 0
    assert (moved - wanted).norm() < 1e-3 * wanted.norm()


def flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in module.parameters()])


@pytest.mark.parametrize("boxes", BOXES)
def test_boxes_lie_in_the_image(boxes: int) -> None:
    batch = make_batch(3, boxes)
    assert batch["batch_idx"].long().bincount().tolist() == [boxes] * 3
    corners = xywh2xyxy(batch["bboxes"])
    assert corners.min() > -1e-6
    assert corners.max() < 1 + 1e-6


def test_goods_on_shelves_do_not_overlap() -> None:
    corners = xywh2xyxy(make_batch(1, 200)["bboxes"])  # (200, 4)
    low = torch.maximum(corners[:, None, :2], corners[None, :, :2])
    high = torch.minimum(corners[:, None, 2:], corners[None, :, 2:])
    assert torch.equal(((high - low) > 1e-6).all(-1), torch.eye(200, dtype=torch.bool))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.json"
    assert main(["--quick", "--losses", "auto", "sparse", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {row["boxes"] for row in rows} == {5, 120}
    for row in rows:
        assert list(row["losses"]) == ["auto", "sparse"]
        for found in row["losses"].values():
            assert [len(parts) for parts in found["steps_ms"]] == [len(PARTS)]
            assert 0 < found["share"] < 1
            assert found["share"] == pytest.approx(found["loss_ms"] / (row["rest_ms"] + found["loss_ms"]))
            assert found["peak_mib"] > 1
    assert "| v8n | 64 | 1 x 120 |" in capsys.readouterr().out
