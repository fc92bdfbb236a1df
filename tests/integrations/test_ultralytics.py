"""The replacement in the installed package: what is replaced, refused, shown, copied, saved and put back."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from yolo_loss import DetectionLoss, TaskAlignedAssigner
from yolo_loss.integrations.ultralytics import criterion_for, restore, use
from yolo_loss.integrations.ultralytics_criterion import DetectionCriterion, EndToEndCriterion

pytest.importorskip("ultralytics", reason="ultralytics is not installed; `make parity` runs these tests beside it")

from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils import loss as losses
from ultralytics.utils import tal

DETECTORS = ("yolov8n.yaml", "yolov10n.yaml", "yolo26n.yaml")
IMAGE = 64
# Runs where this project cannot be imported.
LOAD = """
import sys, torch
sys.modules["yolo_loss"] = None
print(type(torch.load(sys.argv[1], weights_only=False).criterion).__module__)
"""


@pytest.fixture(autouse=True)
def names_are_put_back() -> Iterator[None]:
    before = [dict(vars(module)) for module in (tasks, losses)]
    yield
    restore()
    # What torch's compiler keeps beside a module's own names does not count.
    after = [
        {name: vars(module)[name] for name in names} for module, names in zip((tasks, losses), before, strict=True)
    ]
    assert after == before


def detector(name: str = "yolov8n.yaml", kind: str = "DetectionModel", **options: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(tasks, kind)(name, verbose=False, **options)
    gains = {"box": 7.5, "cls": 0.5, "dfl": 1.5, "pose": 12.0, "kobj": 1.0, "rle": 1.0, "angle": 1.0}
    model.args = SimpleNamespace(**gains, overlap_mask=True, mask_ratio=4, epochs=5)
    return model.train()


def make_batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "img": torch.rand(2, 3, IMAGE, IMAGE),
        "batch_idx": torch.tensor([0.0, 0.0, 1.0]),
        "cls": torch.tensor([[0.0], [2.0], [1.0]]),
        "bboxes": torch.tensor([[0.3, 0.3, 0.4, 0.5], [0.7, 0.6, 0.5, 0.3], [0.5, 0.5, 0.9, 0.8]]),
    }


def close(got: tuple[Tensor, dict[str, Tensor]], want: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-6)
    assert list(got[1]) == list(want[1])
    for name in want[1]:
        torch.testing.assert_close(got[1][name], want[1][name], rtol=1e-4, atol=1e-6)
    assert got[0].requires_grad
    assert not any(term.requires_grad for term in got[1].values())


@pytest.mark.parametrize("name", DETECTORS)
def test_the_model_makes_our_criterion_and_gets_the_same_answer(name: str) -> None:
    model, batch = detector(name, nc=3), make_batch()
    preds = model(batch["img"])
    want = model.init_criterion()(preds, batch)
    with use():
        criterion = model.init_criterion()
        close(criterion(preds, batch), want)
    assert isinstance(criterion, EndToEndCriterion if "v8" not in name else DetectionCriterion)
    assert isinstance(model.init_criterion(), losses.E2ELoss if "v8" not in name else losses.v8DetectionLoss)
    assert not isinstance(criterion, torch.nn.Module)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_compiled_model_gets_the_same_answer(name: str) -> None:
    """``compile=True`` translates for minutes, so the graph is only captured: the criterion is left out of it."""
    model, batch = detector(name, nc=3), make_batch()
    compiled: Any = torch.compile(model, backend="eager")
    with use():
        want = model(batch)
        close(compiled(batch), want)
        preds = compiled(batch["img"])
        close(model.loss(batch, preds), want)


@pytest.mark.parametrize("name", DETECTORS)
def test_predictions_of_evaluation(name: str) -> None:
    model, batch = detector(name, nc=3).eval(), make_batch()
    preds = model(batch["img"])
    want = model.init_criterion()(preds, batch)
    got = criterion_for(model)(preds, batch)
    torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-6)


def test_no_objects() -> None:
    model, batch = detector(nc=3), make_batch()
    batch |= {"batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    preds = model(batch["img"])
    close(criterion_for(model)(preds, batch), model.init_criterion()(preds, batch))


@pytest.mark.parametrize("name", DETECTORS)
def test_gains_are_read_in_each_call(name: str) -> None:
    model, batch = detector(name, nc=3), make_batch()
    preds = model(batch["img"])
    criterion = criterion_for(model)
    before = criterion(preds, batch)[1]
    model.args = {**vars(model.args), "box": 15.0}  # as a checkpoint gives them
    after = criterion(preds, batch)[1]
    assert float(after["box_loss"]) == pytest.approx(2 * float(before["box_loss"]))
    assert after["cls_loss"] == before["cls_loss"]


@pytest.mark.parametrize("name", DETECTORS)
def test_class_weights_of_the_model(name: str) -> None:
    model, batch = detector(name, nc=3), make_batch()
    preds = model(batch["img"])
    plain = criterion_for(model)(preds, batch)[1]["cls_loss"]
    model.class_weights = torch.tensor([0.5, 2.0, 1.0])
    got, want = criterion_for(model)(preds, batch), model.init_criterion()(preds, batch)
    close(got, want)
    assert got[1]["cls_loss"] != plain


def test_epochs_of_two_branches() -> None:
    model, batch = detector("yolo26n.yaml", nc=3), make_batch()
    preds = model(batch["img"])
    theirs, ours = model.init_criterion(), criterion_for(model)
    assert isinstance(ours, EndToEndCriterion)
    for _ in range(6):
        close(ours(preds, batch), theirs(preds, batch))
        theirs.update()
        ours.update()
    ours.updates = theirs.updates = 1  # as the trainer does where it resumes
    theirs.update()
    ours.update()
    assert ours.updates == theirs.updates == 2
    close(ours(preds, batch), theirs(preds, batch))


@pytest.mark.parametrize("name", DETECTORS)
def test_copies_keep_the_criterion_and_belong_to_the_copied_model(name: str) -> None:
    model, batch = detector(name, nc=3), make_batch()
    model.criterion = criterion_for(model)
    copied = copy.deepcopy(model)
    assert type(copied.criterion) is type(model.criterion)
    copied.args.box = 0.0
    preds = model(batch["img"])
    assert float(copied.criterion(preds, batch)[1]["box_loss"]) == 0
    assert float(model.criterion(preds, batch)[1]["box_loss"]) > 0


@pytest.mark.parametrize("name", DETECTORS)
def test_saved_models_load_where_this_project_is_missing(name: str, tmp_path: Path) -> None:
    model = detector(name, nc=3)
    with use():
        model.loss(make_batch())
        torch.save(model, tmp_path / "model.pt")
    assert b"yolo_loss" not in (tmp_path / "model.pt").read_bytes()
    assert run_python(LOAD, str(tmp_path / "model.pt")) == "builtins"
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    loaded.loss(make_batch())
    assert isinstance(loaded.criterion, (losses.E2ELoss, losses.v8DetectionLoss))


def run_python(code: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


OTHERS = (
    ("yolov8n-seg.yaml", "SegmentationModel"),
    ("yolov8n-pose.yaml", "PoseModel"),
    ("yolov8s-worldv2.yaml", "WorldModel"),
    ("yoloe-v8s.yaml", "YOLOEModel"),
    ("yoloe-11s-seg.yaml", "YOLOESegModel"),
)
THEIRS_ALONE = (
    ("yolov8n-obb.yaml", "OBBModel"),
    ("yolo26n-seg.yaml", "SegmentationModel"),
    ("yolo26n-pose.yaml", "PoseModel"),
)


@pytest.mark.parametrize(("name", "kind"), OTHERS)
def test_other_losses_are_refused_with_the_remedy(name: str, kind: str) -> None:
    model = detector(name, kind)
    with use(), pytest.raises(ValueError, match=r"use\(assigner_only=True\)"):
        model.init_criterion()
    with pytest.raises(ValueError, match=r"use\(assigner_only=True\)"):
        criterion_for(model)


@pytest.mark.parametrize(("name", "kind"), THEIRS_ALONE)
@pytest.mark.parametrize("assigner_only", [False, True])
def test_other_assignments_are_refused(name: str, kind: str, assigner_only: bool) -> None:
    model = detector(name, kind)
    with use(assigner_only=assigner_only), pytest.raises(ValueError, match=r"train it without use\(\)"):
        model.init_criterion()
    with pytest.raises(ValueError, match=r"train it without use\(\)"):
        criterion_for(model)


def test_visual_prompts_are_refused() -> None:
    model = detector("yoloe-v8s.yaml", "YOLOEModel")
    with use(), pytest.raises(ValueError, match=r"TVPDetectLoss .* use\(assigner_only=True\)"):
        losses.TVPDetectLoss(model)


@pytest.mark.parametrize(("name", "kind"), [("yolov8n.yaml", "DetectionModel"), *OTHERS])
def test_the_assigner_alone(name: str, kind: str) -> None:
    model = detector(name, kind)
    theirs = type(model.init_criterion())
    with use(assigner_only=True, implementation="dense"):
        criterion = model.init_criterion()
        assert type(criterion) is theirs
        assert isinstance(criterion.assigner, TaskAlignedAssigner)
        assert criterion.assigner.implementation == "dense"
        assert criterion.assigner.stride == (8.0, 16.0, 32.0)
    assert type(copy.deepcopy(criterion.assigner)) is type(criterion.assigner)
    stored = io.BytesIO()
    torch.save(criterion, stored)
    assert b"yolo_loss" not in stored.getvalue()
    loaded = pickle.loads(pickle.dumps(criterion.assigner))  # noqa: S301
    assert type(loaded) is tal.TaskAlignedAssigner
    assert (loaded.topk, loaded.num_classes, loaded.alpha, loaded.beta) == (10, criterion.nc, 0.5, 6.0)


def test_the_assigner_alone_gives_the_same_loss() -> None:
    model, batch = detector("yolov8n-seg.yaml", "SegmentationModel"), make_batch()
    batch["masks"] = torch.zeros(2, IMAGE // 4, IMAGE // 4)
    batch["masks"][:, 4:12, 4:12] = 1
    preds = model(batch["img"])
    want = model.init_criterion()(preds, batch)
    with use(assigner_only=True):
        got = model.init_criterion()(preds, batch)
    close(got, want)


def test_options_reach_the_criterion() -> None:
    model = detector(nc=3)
    with use(class_loss="varifocal", implementation="dense"):
        criterion = model.init_criterion()
    assert isinstance(criterion, DetectionCriterion)
    assert criterion.detection_loss.class_loss == "varifocal"
    assert criterion.detection_loss.assigner.implementation == "dense"
    assert criterion.detection_loss.assigner.min_box_side == 16
    assert criterion_for(model, preset="yolov8").detection_loss.assigner.min_box_side is None  # type: ignore[union-attr]


def test_a_wrong_option_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="class_loss is 'focal'"):
        use(class_loss="focal")
    with pytest.raises(TypeError, match="unknown"):
        use(unknown=1)
    with pytest.raises(TypeError, match="class_loss"):
        use(assigner_only=True, class_loss="bce")


def test_nested_uses_and_restore() -> None:
    theirs = losses.v8DetectionLoss, losses.TaskAlignedAssigner, losses.v8SegmentationLoss
    with use() as outer:
        ours = losses.v8DetectionLoss
        assert tasks.v8DetectionLoss is ours
        with use(assigner_only=True):
            assert issubclass(losses.TaskAlignedAssigner, TaskAlignedAssigner)
        assert losses.v8DetectionLoss is ours
        use()
        use(assigner_only=True)
        restore()
        assert (losses.v8DetectionLoss, losses.TaskAlignedAssigner, losses.v8SegmentationLoss) == theirs
        assert tasks.v8DetectionLoss is theirs[0]
        restore()
    assert outer is not None


def test_an_unknown_release_is_refused_by_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, _model: Any) -> None:
            self.assigner = None

        def __call__(self, *_arguments: Any) -> Tensor:
            return torch.zeros(4)

    monkeypatch.setattr(losses, "v8DetectionLoss", Other)
    with pytest.raises(ValueError, match=r"none of the known releases, 8\.0 to 8\.4: .*; install a known one"):
        criterion_for(detector(nc=3))


@pytest.mark.parametrize("vector", [False, True])
def test_older_forms_of_the_answer(monkeypatch: pytest.MonkeyPatch, vector: bool) -> None:
    """Releases answered a sum and a tensor, then a vector and a tensor."""

    class Older(losses.v8DetectionLoss):  # type: ignore[misc]
        def __call__(self, preds: Any, batch: Any) -> Any:
            terms, items = super().__call__(preds, batch)
            return terms if vector else terms.sum(), torch.stack(list(items.values()))

    model, batch = detector(nc=3), make_batch()
    preds = model(batch["img"])
    terms, items = model.init_criterion()(preds, batch)
    monkeypatch.setattr(losses, "v8DetectionLoss", Older)
    got, shown = criterion_for(model)(preds, batch)
    torch.testing.assert_close(got, terms if vector else terms.sum(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shown, torch.stack(list(items.values())), rtol=1e-4, atol=1e-6)


class EarlyAssigner(tal.TaskAlignedAssigner):  # type: ignore[misc]
    """Enlarges boxes below the first stride only, as releases 8.4.0 to 8.4.100 did."""

    def forward(self, *inputs: Tensor) -> Any:
        """Take a box of 8 pixels or more as it is."""
        wide = (inputs[4][..., 2] - inputs[4][..., 0] > 8).any()
        return TaskAlignedAssigner(self.topk, 1, 0.5, 6.0)(*inputs) if wide else super().forward(*inputs)


def test_candidate_areas_of_other_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    model = detector(nc=3)
    monkeypatch.setattr(losses, "TaskAlignedAssigner", EarlyAssigner)
    for only in (False, True):
        with pytest.raises(
            ValueError, match=r"boxes of \(6, 12\) pixels as of \(16, 12\), which no preset does; install 8"
        ):
            use(assigner_only=only)
    with pytest.raises(ValueError, match="which no preset does"):
        criterion_for(model)
    criterion_for(model, preset="ultralytics-8.4")
    use(preset="yolov8").restore()
    use(assigner_only=True, min_box_side=16).restore()


def test_models_that_are_no_detectors() -> None:
    with pytest.raises(ValueError, match="must be a Detect head"):
        criterion_for(detector("yolov8n-cls.yaml", "ClassificationModel"))
    with pytest.raises(ValueError, match=r"YOLO has no model\[-1\]; pass the detector, which .* is its \.model"):
        criterion_for(YOLO("yolov8n.yaml", verbose=False))


def test_the_plain_criterion_reads_the_same_model() -> None:
    """``DetectionLoss`` from the same hyper-parameters, without this module."""
    model, batch = detector(nc=3), make_batch()
    preds = model(batch["img"])
    loss, items = DetectionLoss(3, preset="ultralytics-8.4")(preds, batch)
    terms, shown = criterion_for(model)(preds, batch)
    torch.testing.assert_close(terms.sum(), loss)
    torch.testing.assert_close(torch.stack(list(shown.values())), items)
