"""Criteria with the interface of Ultralytics' trainer around ``DetectionLoss``.

An Ultralytics criterion is a plain object: called with predictions and batch it answers the terms and, detached, what
the trainer prints. In which form differs between releases, and is read from the installed one.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from yolo_loss.criterion import gains_of, head_of, v8DetectionLoss
from yolo_loss.end_to_end import EndToEndLoss
from yolo_loss.losses import loss_from_sums
from yolo_loss.option_checks import stride_list
from yolo_loss.predictions import RawOutput
from yolo_loss.structures import Gains

LOSSES = "ultralytics.utils.loss"
KEEP_THEIRS = "use(assigner_only=True) keeps Ultralytics' own criterion and replaces the assigner in it"
WITHOUT = "its assigner looks at more than boxes and scores: train it without use()"
# What heads that extend the detection head have beside it, and the remedy.
OTHER_HEADS = MappingProxyType(
    {
        "Segment26": f"masks; {WITHOUT}",
        "Pose26": f"keypoints; {WITHOUT}",
        "OBB": f"rotated boxes; {WITHOUT}",
        "Segment": f"masks; {KEEP_THEIRS}",
        "Pose": f"keypoints; {KEEP_THEIRS}",
        "WorldDetect": f"texts in the place of classes; {KEEP_THEIRS}",
        "YOLOEDetect": f"prompts in the place of classes; {KEEP_THEIRS}",
    }
)
# Sides in pixels, and in which sides candidates are sought, by release.
PROBED_SIDES = (6, 12)
PRESET_OF_SIDES: Mapping[tuple[int, ...], str] = MappingProxyType({(6, 12): "yolov8", (16, 16): "ultralytics-8.4"})
Options = Mapping[str, Any]


class AnswerForm(NamedTuple):
    """What the installed release expects from a criterion.

    Attributes:
        vector: The terms (3,) times B; otherwise their sum.
        named: The detached terms by name; otherwise (3,).
    """

    vector: bool
    named: bool


class Unpickled:
    """Copied as it is within a process; another process reads ``None`` in its place.

    So a checkpoint that holds a model with its criterion loads where this project is not installed. The model makes its
    criterion anew on the first use.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = object.__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return type(None), ()


class DetectionCriterion(Unpickled):
    """``DetectionLoss`` for a head with one assignment, under the signature of Ultralytics' ``v8DetectionLoss``."""

    options: ClassVar[Options] = MappingProxyType({})

    def __init__(self, model: Any, tal_topk: int = 10, tal_topk2: int | None = None, **options: Any) -> None:
        """Read the hyper-parameters from the model.

        Args:
            model: The detector, with ``args``.
            tal_topk: Candidates per ground truth.
            tal_topk2: Anchors each ground truth keeps in the end; None: all it won.
            **options: Passed to ``DetectionLoss``.

        Raises:
            ValueError: The head has losses that cannot be computed here, or the installed release is not known.
        """
        self.model = getattr(model, "module", model)
        refuse_other_heads(self.model)
        options = {**self.options, **options}
        self.detection_loss = v8DetectionLoss(self.model, tal_topk, tal_topk2, **with_preset(options))
        self.form = answer_form(self.model)

    def __call__(self, preds: RawOutput, batch: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Compute the loss of a training batch; gains and class weights are read from the model in each call.

        Args:
            preds: What the head gives in training, or in evaluation.
            batch: A batch of Ultralytics' loader: ``batch_idx`` (T,), ``cls`` (T, 1), ``bboxes`` (T, 4).

        Returns:
            The terms (3,) times B, to call ``sum().backward()`` on; and by name the detached terms. Releases that
            expect their sum, or (3,) without names, get that.
        """
        self.detection_loss.gains = gains_of(self.model)
        batch = with_class_weights(self.model, batch)
        result = self.detection_loss.evaluate(preds, batch, count_clipped=False)
        _, terms = loss_from_sums(result.image_sums, self.detection_loss.gains)
        return answer(self.form, terms * result.image_sums.shape[0], terms, self.detection_loss.loss_names)


def answer(form: AnswerForm, scaled: Tensor, shown: Tensor, names: Sequence[str]) -> tuple[Tensor, Any]:
    """Terms (3,) times B, and the terms (3,) to show, as the release expects them."""
    shown = shown.detach()
    items = {f"{name}_loss": term for name, term in zip(names, shown.unbind(), strict=True)} if form.named else shown
    return scaled if form.vector else scaled.sum(), items


def args_of(model: Any) -> Mapping[str, Any]:
    """``model.args``, which is an object in training, and a dict in a checkpoint."""
    return model.args if isinstance(model.args, Mapping) else vars(model.args)


def with_class_weights(model: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The batch with the model's ``class_weights`` (C,), where it has some and the batch has none."""
    weights = getattr(model, "class_weights", None)
    return batch if weights is None else {"class_weights": weights, **batch}


def refuse_other_heads(model: Any) -> None:
    """Refuse heads with losses beside the three.

    Raises:
        ValueError: The head is one of these; the text has the remedy.
    """
    head = type(head_of(model))
    for base in head.__mro__:
        if base.__name__ in OTHER_HEADS:
            raise ValueError(f"{head.__name__} is a head with {OTHER_HEADS[base.__name__]}")


def original(module: str, name: str) -> Any:
    """The installed package's own object, whether or not it is replaced.

    Raises:
        ImportError: The package is missing, or its release has no such object.
    """
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"{module}.{name} cannot be imported: {error}; this needs your own installation of ultralytics (AGPL-3.0), "
            "release 8.0.196 or later"
        ) from error
    while hasattr(found, "replaced"):
        found = found.replaced
    return found


def with_preset(options: Options) -> Options:
    """The options with the installed release's candidate areas, where none are chosen.

    Raises:
        ImportError: The package is missing.
        ValueError: No preset has the areas of this release.
    """
    return options if "preset" in options else {**options, "preset": release_preset()}


def release_preset() -> str:
    """Ask the installed assigner how far it enlarges boxes of 6 and of 12 pixels, for strides 8, 16, 32.

    Raises:
        ImportError: The package is missing.
        ValueError: No preset does so.
    """
    assigner = original(LOSSES, "TaskAlignedAssigner")
    sides = tuple(candidate_side(assigner, side) for side in PROBED_SIDES)
    if sides not in PRESET_OF_SIDES:
        raise ValueError(
            f"to find candidates, the installed ultralytics takes boxes of {PROBED_SIDES} pixels as of {sides}, which "
            "no preset does; install 8.4.190, or accept other candidates with preset='ultralytics-8.4' "
            "(min_box_side=16 where only the assigner is replaced)"
        )
    return PRESET_OF_SIDES[sides]


def candidate_side(assigner: type, side: int) -> int:
    """Pixels of a row through a box's centre that an assigner takes for candidates."""
    given = {"stride": [8.0, 16.0, 32.0]} if "stride" in inspect.signature(assigner).parameters else {}
    points = torch.stack((torch.arange(64) + 0.5, torch.full((64,), 32.0)), dim=1)
    box = torch.tensor([[[32 - side / 2, 32 - side / 2, 32 + side / 2, 32 + side / 2]]])
    found = assigner(topk=64, num_classes=1, alpha=0.5, beta=6.0, **given)(
        torch.full((1, 64, 1), 0.5), box.repeat(1, 64, 1), points, torch.zeros(1, 1, 1), box, torch.ones(1, 1, 1)
    )
    return int(found[3].sum())


@torch.no_grad()
def answer_form(model: Any) -> AnswerForm:
    """Ask the installed release's own criterion about an image without objects, and see what it answers.

    Raises:
        ImportError: The package is missing.
        ValueError: The criterion does not work as in any known release.
    """
    try:
        criterion = original(LOSSES, "v8DetectionLoss")(model)
        value, items = criterion(*empty_batch(model, joined=hasattr(criterion, "parse_output")))
        if value.shape not in ((), (3,)) or len(items) != len(Gains._fields):
            raise ValueError(f"it answers {tuple(value.shape)} and {len(items)} terms")
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            f"the installed ultralytics is none of the known releases, 8.0 to 8.4: its v8DetectionLoss answers "
            f"{type(error).__name__}: {error}; install a known one, or use DetectionLoss in a loop of your own"
        ) from error
    return AnswerForm(value.ndim == 1, isinstance(items, Mapping))


def empty_batch(model: Any, *, joined: bool) -> tuple[Any, dict[str, Tensor]]:
    """Predictions of zeros for one image without objects, and the batch."""
    head = model.model[-1]
    device = next(model.parameters()).device
    strides = stride_list("stride", head.stride)
    sides = [int(max(strides) / stride) for stride in strides]
    maps = [torch.zeros(1, 4 * head.reg_max + head.nc, side, side, device=device) for side in sides]
    batch = {
        "batch_idx": torch.zeros(0, device=device),
        "cls": torch.zeros(0, 1, device=device),
        "bboxes": torch.zeros(0, 4, device=device),
    }
    if not joined:
        return maps, batch
    flat = torch.cat([level.flatten(2) for level in maps], dim=2)
    return {"boxes": flat[:, : 4 * head.reg_max], "scores": flat[:, 4 * head.reg_max :], "feats": maps}, batch


class EndToEndCriterion(Unpickled):
    """``EndToEndLoss`` for the heads of YOLOv10 and YOLO26, under the signature of Ultralytics' ``E2ELoss``."""

    options: ClassVar[Options] = MappingProxyType({})

    def __init__(self, model: Any, loss_fn: Any = None, **options: Any) -> None:
        """Read the hyper-parameters from the model.

        Args:
            model: The detector, with ``args``, which hold ``epochs`` too.
            loss_fn: The class of the two parts; only ``DetectionCriterion`` can be computed here.
            **options: Passed to both ``DetectionLoss``.

        Raises:
            ValueError: As ``DetectionCriterion``, or the parts have losses of another class.
        """
        self.model = getattr(model, "module", model)
        refuse_other_heads(self.model)
        if loss_fn is not None and not issubclass(loss_fn, DetectionCriterion):
            raise ValueError(f"E2ELoss is to compute {loss_fn.__name__}, which is not replaced; {KEEP_THEIRS}")
        options = dict(with_preset({**self.options, **options}))
        plain = v8DetectionLoss(self.model, **options)
        self.detection_loss = EndToEndLoss(
            plain.num_classes,
            plain.strides,
            plain.reg_max,
            epochs=args_of(self.model)["epochs"],
            gains=plain.gains,
            **options,
        )
        self.form = answer_form(self.model)

    def update(self) -> None:
        """Count an epoch; the weight moves from the one-to-many to the one-to-one loss."""
        self.detection_loss.update()

    @property
    def updates(self) -> int:
        """Epochs that are over; the trainer sets it where it resumes."""
        return self.detection_loss.updates

    @updates.setter
    def updates(self, value: int) -> None:
        self.detection_loss.updates = value

    def __call__(self, preds: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Compute the loss of a training batch.

        Args:
            preds: A dict of ``one2many`` and ``one2one``, or a tuple with that last.
            batch: As for ``DetectionCriterion``.

        Returns:
            The weighted terms (3,) times B; and by name the detached terms of the one-to-one part.
        """
        loss, gains = self.detection_loss, gains_of(self.model)
        loss.one2many.gains = loss.one2one.gains = gains
        result = loss.evaluate(preds, with_class_weights(self.model, batch), count_clipped=False)
        _, many = loss_from_sums(result.one2many.image_sums, gains)
        _, one = loss_from_sums(result.one2one.image_sums, gains)
        terms = many * loss.one2many_share + one * (1 - loss.one2many_share)
        return answer(self.form, terms * result.one2one.image_sums.shape[0], one, loss.loss_names)
