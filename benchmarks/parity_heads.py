"""Criteria beside each other on every detection model that an installed ``ultralytics`` ships.

Each model sees the two sample pictures. Its raw predictions, made lively by seeded noise, go through its own criterion
and through ours, in float32 and in float64, with and without class weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common.report import table
from examples.dataset import load_labels, load_pictures
from yolo_loss import Assignment, DetectionLoss
from yolo_loss.integrations.ultralytics import criterion_for

SIZE, CLASSES = 320, 80
LIMIT = 1e-5
# Models without the three detection losses, and those whose classes are prompts.
OTHER_MODELS = re.compile(r"cls|seg|pose|obb|sem|depth|rtdetr|world|yoloe")
SCALED = re.compile(r"(yolo(?:v[568]|\d\d))(.*)\.yaml")  # the n size is named in the file's name


class HeadParity(NamedTuple):
    """One model, with or without class weights; differences are relative.

    Attributes:
        model: Name of the yaml file.
        branches: 1, or 2 with one-to-many and one-to-one.
        reg_max: R.
        strides: Of the head.
        class_weights: Whether the model has some.
        terms: Largest difference of box, dfl and l1 terms, both in float32.
        class_term: Of the class term, ours in float32 beside the reference in float64.
        class_term_float32: The same, the reference in float32.
        terms_float64: Largest difference of the terms, both in float64.
        gradient: Of the gradient by all raw predictions, both in float32: norm of the difference over the norm.
        foreground: Anchors that the reference assigns in float64.
        decisions: Anchors whose flag, slot or label differs in float64, except those of weight 0.
        weightless: Anchors whose flag differs in float64 and whose weight is 0 in both.
    """

    model: str
    branches: int
    reg_max: int
    strides: list[int]
    class_weights: bool
    terms: float
    class_term: float
    class_term_float32: float
    terms_float64: float
    gradient: float
    foreground: int
    decisions: int
    weightless: int

    @property
    def equal(self) -> bool:
        """Whether all is within the limits."""
        return self.decisions == 0 and max(self.terms, self.class_term, self.terms_float64, self.gradient) <= LIMIT


class Outcome(NamedTuple):
    """What a criterion answers.

    Attributes:
        terms: (3,) shown terms.
        scaled: (3,) terms times B, weighted over the branches.
        gradient: By all raw predictions, one dimension.
        assignments: Per branch.
    """

    terms: Tensor
    scaled: Tensor
    gradient: Tensor
    assignments: list[Assignment]


def heads_table(results: Sequence[HeadParity]) -> str:
    """One row a model, the larger difference of those without and with class weights."""
    head = (
        "model",
        "branches",
        "R",
        "strides",
        "assigned",
        "differ",
        "box, dfl or l1",
        "class",
        "float64",
        "gradient",
        "",
    )
    rows = []
    for plain, weighted in zip(results[::2], results[1::2], strict=True):
        largest = [
            f"{max(getattr(plain, name), getattr(weighted, name)):.1e}"
            for name in ("terms", "class_term", "terms_float64", "gradient")
        ]
        differ = f"{plain.decisions + weighted.decisions}"
        weightless = plain.weightless + weighted.weightless
        shown = f"{differ} ({weightless} of weight 0)" if weightless else differ
        ok = "ok" if plain.equal and weighted.equal else "NO"
        strides = ", ".join(map(str, plain.strides))
        rows.append((plain.model, plain.branches, plain.reg_max, strides, plain.foreground, shown, *largest, ok))
    return table(head, rows)


def detection_models() -> list[str]:
    """Names of the detection models' yaml files, in the smallest size where a file has several."""
    import ultralytics

    files = sorted((Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml"))
    names = [file.name for file in files if not OTHER_MODELS.search(file.name)]
    return [SCALED.sub(r"\1n\2.yaml", name) for name in names]


def compare_heads(names: Sequence[str]) -> Iterator[HeadParity]:
    """Compare the criteria on each model, without and with class weights."""
    for name in names:
        model = make_model(name)
        batch = make_batch()
        preds = lively_predictions(model, batch["img"])
        for weighted in (False, True):
            model.class_weights = torch.linspace(0.5, 2.0, CLASSES) if weighted else None
            yield compare_head(name, model, preds, batch)


def make_model(name: str) -> Any:
    """The model from its yaml file, with random weights."""
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    model = DetectionModel(name, nc=CLASSES, verbose=False)
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=10)
    return model.train()


def make_batch() -> dict[str, Tensor]:
    """Both pictures with their trees, whose classes are made up.

    The boxes are moved a little: their edges would lie exactly on anchor points, where rounding decides.
    """
    torch.manual_seed(2)
    labels = {name: torch.from_numpy(values).float() for name, values in load_labels().items()}
    labels["cls"] = torch.arange(len(labels["cls"])).float()[:, None] % CLASSES
    labels["bboxes"] += 1e-3 * torch.rand_like(labels["bboxes"])
    return {"img": torch.from_numpy(load_pictures(SIZE)), **labels}


@torch.no_grad()
def lively_predictions(model: nn.Module, images: Tensor) -> list[dict[str, Any]]:
    """Raw predictions of each branch, which fresh weights leave nearly constant, with noise."""
    torch.manual_seed(1)
    preds: Any = model(images)
    branches = [preds["one2many"], preds["one2one"]] if "one2many" in preds else [preds]
    for branch in branches:
        boxes, scores = branch["boxes"], branch["scores"]
        branch["boxes"] = boxes + torch.randn_like(boxes)
        branch["scores"] = scores + 2 * torch.randn_like(scores)
        if boxes.shape[1] == 4:  # distances, not logits
            branch["boxes"] = 1 + 2 * torch.rand_like(boxes)
    return branches


def compare_head(name: str, model: Any, branches: Sequence[dict[str, Any]], batch: dict[str, Tensor]) -> HeadParity:
    """Compare the criteria on the same predictions."""
    from ultralytics.nn.tasks import DetectionModel

    head = model.model[-1]
    reference = DetectionModel.init_criterion
    theirs, theirs64 = (run(reference(model), branches, batch, dtype) for dtype in (torch.float32, torch.float64))
    ours, ours64 = (run(criterion_for(model), branches, batch, dtype) for dtype in (torch.float32, torch.float64))
    other = [0, 2]  # box, and dfl or l1
    flags = [differing(*pair) for pair in zip(ours64.assignments, theirs64.assignments, strict=True)]
    return HeadParity(
        name.removesuffix(".yaml"),
        len(branches),
        head.reg_max,
        [int(stride) for stride in head.stride],
        model.class_weights is not None,
        max(relative(ours.terms[other], theirs.terms[other]), relative(ours.scaled[other], theirs.scaled[other])),
        max(relative(ours.terms[1], theirs64.terms[1]), relative(ours.scaled[1], theirs64.scaled[1])),
        max(relative(theirs.terms[1], theirs64.terms[1]), relative(theirs.scaled[1], theirs64.scaled[1])),
        max(relative(ours64.terms, theirs64.terms), relative(ours64.scaled, theirs64.scaled)),
        float((ours.gradient - theirs.gradient).norm() / theirs.gradient.norm()),
        sum(int(found.fg_mask.sum()) for found in theirs64.assignments),
        sum(decisions for decisions, _ in flags),
        sum(weightless for _, weightless in flags),
    )


def relative(got: Tensor, want: Tensor) -> float:
    """Largest relative difference."""
    return float(((got - want).abs() / want.abs().clamp(min=1e-12)).max())


def run(criterion: Any, branches: Sequence[dict[str, Any]], batch: dict[str, Tensor], dtype: torch.dtype) -> Outcome:
    """Loss and gradients of a criterion, and what it assigns."""
    leaves = [
        {key: branch[key].detach().to(dtype).requires_grad_() for key in ("boxes", "scores")} for branch in branches
    ]
    preds = [{**branch, **leaf} for branch, leaf in zip(branches, leaves, strict=True)]
    batch = {key: value.to(dtype) for key, value in batch.items()}
    ours = getattr(criterion, "detection_loss", None)
    whole = criterion if ours is None else ours
    parts = [whole.one2many, whole.one2one] if len(branches) == 2 else [whole]
    with default_dtype(dtype):  # of what the reference allocates
        scaled, items = criterion(preds[0] if len(preds) == 1 else {"one2many": preds[0], "one2one": preds[1]}, batch)
        assignments = [assignment(part, pred, batch) for part, pred in zip(parts, preds, strict=True)]
    scaled.sum().backward()
    gradients = [leaf[key].grad for leaf in leaves for key in ("boxes", "scores")]
    gradient = torch.cat([values.flatten() for values in gradients if values is not None])
    return Outcome(torch.stack(list(items.values())).double(), scaled.detach().double(), gradient, assignments)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create tensors in this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def assignment(criterion: Any, preds: dict[str, Any], batch: dict[str, Tensor]) -> Assignment:
    """What a criterion of one branch assigns."""
    if isinstance(criterion, DetectionLoss):
        return criterion.evaluate(preds, batch).assignment
    results: list[Any] = []
    hook = criterion.assigner.register_forward_hook(lambda *call: results.append(call[-1]))
    criterion({key: values.detach() if key != "feats" else values for key, values in preds.items()}, batch)
    hook.remove()
    _, _, scores, mask, slots = results[0]
    return Assignment(mask, slots, scores.sum(-1))


def differing(got: Assignment, want: Assignment) -> tuple[int, int]:
    """Anchors whose flag or slot differs: those that have a weight, and those that have none."""
    flags = got.fg_mask ^ want.fg_mask
    weightless = flags & (got.target_weights == 0) & (want.target_weights == 0)
    slots = (got.target_gt_idx != want.target_gt_idx) & got.fg_mask & want.fg_mask
    return int((flags & ~weightless).sum() + slots.sum()), int(weightless.sum())
