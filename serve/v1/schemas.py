"""The requests and replies of the v1 JSON API. The OpenAPI page shows the docstrings and descriptions."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, FiniteFloat, Tag

# Validation stops at a list's first bad item: errors for all would take a thousand times the request's memory.
FIRST = Field(fail_fast=True)
MOST_SIDE = 2**31 - 1  # pixels
MOST_LEVELS = 16
Item = TypeVar("Item")
Row = Annotated[list[Item], FIRST]


class Strict(BaseModel):
    """Base of requests: refuses unknown fields, and numbers written as text."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PackedTensor(Strict):
    """A tensor as base64 of its little-endian, row-major bytes: a third of the size of nested lists."""

    shape: Row[Annotated[int, Field(ge=0, le=2**40)]] = Field(max_length=4)
    dtype: Literal["float16", "float32"]
    base64: str


def _form(value: Any) -> str:
    return "packed" if isinstance(value, dict | PackedTensor) else "nested"


Side = Annotated[int, Field(gt=0, le=MOST_SIDE)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]
Packed = Annotated[PackedTensor, Tag("packed")]
Tensor3 = Annotated[Annotated[Row[Row[Row[float]]], Tag("nested")] | Packed, Discriminator(_form)]
Tensor4 = Annotated[Annotated[Row[Row[Row[Row[float]]]], Tag("nested")] | Packed, Discriminator(_form)]


class Batch(Strict):
    """Boxes of all images, one entry each, as YOLO data loaders give them. Empty lists are an ordinary case."""

    batch_idx: Row[float] = Field(description="(T) image of each box, counted from 0")
    cls: Row[float] = Field(description="(T) class of each box, counted from 0")
    bboxes: Row[tuple[float, float, float, float]] = Field(
        description="(T, 4) centre x, centre y, width, height, each in 0..1 of the image"
    )
    class_weights: Row[Row[NotNegative]] | None = Field(
        None, description="(B, C) factors of the class loss, for a model with this input; 1 when left out"
    )
    ignore_idx: Row[float] | None = Field(None, description="(K) image of each region to ignore, counted from 0")
    ignore_bboxes: Row[tuple[float, float, float, float]] | None = Field(
        None, description="(K, 4) regions whose background has no class loss, as `bboxes`; for a model with this input"
    )


class LossRequest(Strict):
    """Raw predictions, either as maps (`feats`) or flattened (`pred_distri`, `pred_scores`, `imgsz`), and the boxes."""

    model: str | None = Field(None, description="Name of the model; the first of its kind when left out")
    feats: Row[Tensor4] | None = Field(None, max_length=MOST_LEVELS, description="One map [B, 4R + C, H, W] per stride")
    pred_distri: Tensor3 | None = Field(None, description="[B, A, 4R] logits of the box distributions")
    pred_scores: Tensor3 | None = Field(None, description="[B, A, C] class logits")
    imgsz: tuple[Side, Side] | None = Field(None, description="Height and width in pixels; `feats` imply it")
    batch: Batch
    outputs: Row[str] = Field([], description="Outputs of the model to add to the reply as `tensors`")


class AssignRequest(LossRequest):
    """Predictions as for the loss, or decoded ones (`pd_scores`, `pd_bboxes`, `imgsz`), and the boxes."""

    pd_scores: Tensor3 | None = Field(None, description="[B, A, C] class probabilities")
    pd_bboxes: Tensor3 | None = Field(None, description="[B, A, 4] boxes x1, y1, x2, y2 in pixels")
    strides: Row[Side] | None = Field(
        None,
        min_length=1,
        max_length=MOST_LEVELS,
        description="Pixels per cell of the decoded predictions' levels; the model's when left out",
    )


class ExplainRequest(LossRequest):
    """Predictions as for the loss, or pictures (`images`) for a model with a detector, and the boxes."""

    images: Tensor4 | None = Field(
        None,
        description="[B, 3, H, W] red, green, blue in 0..1, in the place of predictions; for kind `detector_explain`",
    )
    pairs: bool = Field(True, description="Whether to list every candidate, a pair of a box and an anchor inside it")


class WorkerSums(Strict):
    """The sums of one image, without gains, not normalised, as `/v1/loss` gives them."""

    box: FiniteFloat
    cls: FiniteFloat
    dfl: FiniteFloat
    target_scores: NotNegative


class WorkerSumsL1(Strict):
    """The same for a model with reg_max 1."""

    box: FiniteFloat
    cls: FiniteFloat
    l1: FiniteFloat
    target_scores: NotNegative


def _sums_form(value: Any) -> str:
    if isinstance(value, WorkerSumsL1) or (isinstance(value, dict) and "l1" in value):
        return "l1_sums"
    return "dfl_sums" if isinstance(value, dict | WorkerSums) else "row"


SumsRow = tuple[FiniteFloat, FiniteFloat, FiniteFloat, NotNegative]
AnySums = Annotated[
    Annotated[WorkerSums, Tag("dfl_sums")] | Annotated[WorkerSumsL1, Tag("l1_sums")] | Annotated[SumsRow, Tag("row")],
    Discriminator(_sums_form),
]


class ReduceRequest(Strict):
    """The sums of all images of one batch, from any number of workers."""

    model: str | None = Field(None, description="Model whose gains apply; the first one with gains when left out")
    workers: Row[Row[AnySums]] = Field(
        min_length=1,
        description="Per worker the `image_sums` of its images, as objects or as rows of the four in the same order",
    )


class LossItems(BaseModel):
    """The three terms with their gains, averaged over the batch; the third is `dfl` or `l1`."""

    box: float | None
    cls: float | None
    dfl: float | None = Field(None, description="Distribution term; not for models with reg_max 1")
    l1: float | None = Field(None, description="Distance term, only for models with reg_max 1")


class ImageSums(LossItems):
    """The terms of one image without gains, not normalised, and the sum of its target scores.

    Added over images, then divided by the larger of 1 and the sum of `target_scores`, they give the loss of any batch.
    """

    target_scores: float | None


class LossReply(BaseModel):
    """The loss. Numbers that are not finite are `null`."""

    model: str
    loss: float | None = Field(description="Sum of `loss_items`, times the number of images")
    loss_items: LossItems
    image_sums: list[ImageSums]
    tensors: dict[str, Any] = Field(description="The outputs that were asked for, as nested lists")


class ReduceReply(BaseModel):
    """The loss of the one large batch."""

    model: str
    loss: float | None = Field(description="Sum of `loss_items`, times the number of images")
    loss_items: LossItems
    num_images: int
    gradient_scales: list[float | None] = Field(
        description="Per worker: its own loss's gradients times this are those of the large batch's loss"
    )


class ImageTargets(BaseModel):
    """The anchors of one image that got a box, P of them, in the order of their index."""

    anchor_idx: list[int] = Field(description="(P) index among all anchors: by stride, then by row, then by column")
    anchor_points: list[list[float]] = Field(description="(P, 2) x and y in pixels")
    target_gt_idx: list[int] = Field(description="(P) which of the image's boxes, in the order they were given")
    target_labels: list[int] = Field(description="(P) its class")
    target_bboxes: list[list[float | None]] = Field(description="(P, 4) its corners x1, y1, x2, y2 in pixels")
    target_weights: list[float | None] = Field(description="(P) the normalized alignment score of that class")


class AssignReply(BaseModel):
    """The assignment: for every image, the foreground anchors only."""

    model: str
    imgsz: tuple[int, int]
    num_anchors: int
    images: list[ImageTargets]
    tensors: dict[str, Any] = Field(description="The outputs that were asked for, for all anchors, as nested lists")


class ExplainedLoss(LossItems):
    """The loss, and its three terms with their gains."""

    total: float | None


class PyramidLevel(BaseModel):
    """A level: its cells of `stride` pixels are numbered from `first_anchor`, row by row."""

    stride: float
    height: int
    width: int
    first_anchor: int


class RivalBox(BaseModel):
    """Another box of the same image, and how many of the chosen anchors it took."""

    slot: int
    anchors: int


class Flag(BaseModel):
    """Something to look at, beside the reason."""

    flag: Literal["clipped", "duplicate", "weak"]
    sentence: str
    remedy: str


class ExplainedBox(BaseModel):
    """What became of one box."""

    slot: int = Field(description="Which of the image's boxes, in the order they were given")
    label: int
    bbox: list[float | None] = Field(description="Its corners x1, y1, x2, y2 in pixels")
    reason: str = Field(
        description="`assigned`, or why it has no anchor: `invalid`, `outside`, `no_anchor`, `no_overlap`, `no_score`, "
        "`contested`"
    )
    sentence: str = Field(description="The reason in words")
    remedy: str = Field(description="What would help")
    num_candidates: list[int] = Field(description="Anchors of each level whose centre lies inside the box")
    num_chosen: int = Field(description="Candidates that entered the top k")
    num_lost: int = Field(description="How many of these another box took")
    lost_to: int | None = Field(description="The box that took most of them")
    num_assigned: int
    weight_sum: float | None = Field(description="Sum of the normalized alignment scores of its anchors")
    best_iou: float | None
    best_iou_anchor: int | None
    best_score: float | None
    best_score_anchor: int | None
    best_metric: float | None
    best_metric_anchor: int | None
    nearest_distance: float | None = Field(description="Pixels to the nearest anchor's centre, where none lies inside")
    helping_side: float | None = Field(description="The smallest whole `min_box_side` that gives it a candidate; or 0")
    clipped_share: float | None = Field(description="Share of its anchors' sides that the head cannot express")
    duplicate_of: int | None = Field(description="The box of the image that covers the same place")
    weak: bool = Field(description="Its sum of weights is below 0.1 of the image's median")
    flags: list[Flag]
    rivals: list[RivalBox] = Field(description="Who took its chosen anchors, most first")
    loss: ExplainedLoss = Field(description="Its part of the loss; the terms without gains, not normalised")


class Pairs(BaseModel):
    """The candidates of one image as columns, P long each, in the order of box and anchor."""

    slot: list[int]
    anchor: list[int]
    level: list[int]
    iou: list[float | None]
    score: list[float | None]
    metric: list[float | None]
    rank: list[int] = Field(description="Place among the box's candidates by metric, from 1")
    outcome: list[int] = Field(description="Index into the reply's `outcomes`")
    lost_to: list[int] = Field(description="The box that took the anchor; -1: none did")
    weight: list[float | None] = Field(description="Normalized alignment score; 0 unless assigned")


class ExplainedImageLoss(ImageSums):
    """An image's part of the loss, and its sums."""

    total: float | None
    background: float | None = Field(description="What of `total` belongs to no box")


class ExplainedImage(BaseModel):
    """What became of the boxes of one image."""

    loss: ExplainedImageLoss
    ground_truths: list[ExplainedBox]
    pairs: Pairs | None


class ExplainReply(BaseModel):
    """Why each box is learned or not. Numbers of boxes, images and losses have six digits."""

    format: str
    version: int
    model: str
    parameters: dict[str, Any] = Field(description="Hyper-parameters of the model")
    imgsz: tuple[int, int]
    levels: list[PyramidLevel]
    outcomes: list[str]
    reasons: dict[str, int] = Field(description="How many boxes have each reason")
    loss: ExplainedLoss
    images: list[ExplainedImage]
    tensors: dict[str, Any] = Field(description="The outputs that were asked for, as nested lists")
