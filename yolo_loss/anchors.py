"""Anchor points of a feature pyramid, and decoding of the boxes predicted at them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce

import torch
from torch import Tensor

from yolo_loss.boxes import dist2bbox
from yolo_loss.execution.buffers import is_plain
from yolo_loss.execution.channels import Channels
from yolo_loss.execution.chunks import image_slices, map_chunks, map_images
from yolo_loss.execution.compilation import kernel
from yolo_loss.execution.products import exponentials, in_place

# Sums of exponentials between these bounds are of logits between -21 and 21, whose exponentials need no shift.
LEAST_SUM, LARGEST_SUM = 2.0**-30, 2.0**30


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: float64 when an input has it, else float32.

    Half precision is never enough: u^6 underflows in float16 below u = 0.0625.
    """
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def make_anchors(
    feats: Sequence[Tensor], strides: Sequence[float] | Tensor, grid_cell_offset: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Centres of all cells, level by level, row by row, x fastest.

    Args:
        feats: L feature maps (B, channels, H_i, W_i); only shape, dtype and device are read.
        strides: L strides in pixels per cell.
        grid_cell_offset: Position of a point inside its cell; 0.5 is the centre.

    Returns:
        Anchor points (A, 2) as x, y in grid units, and the stride of each (A, 1), in the maps' dtype;
        half precision becomes float32, because float16 cannot tell neighbouring points of a large map apart.

    Raises:
        ValueError: The number of maps and of strides differ.
    """
    if len(feats) != len(strides):
        raise ValueError(f"{len(feats)} feature maps but {len(strides)} strides; give one stride per map")
    points, scales = [], []
    for feat, stride in zip(feats, strides, strict=True):
        dtype = compute_dtype(feat)
        height, width = feat.shape[2], feat.shape[3]
        x = torch.arange(width, dtype=dtype, device=feat.device) + grid_cell_offset
        y = torch.arange(height, dtype=dtype, device=feat.device) + grid_cell_offset
        grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1)  # (H, W, 2)
        points.append(grid.reshape(-1, 2))
        scales.append(torch.full((height * width, 1), float(stride), dtype=dtype, device=feat.device))
    return torch.cat(points), torch.cat(scales)


def cached_anchors(feats: Sequence[Tensor], strides: Sequence[float]) -> tuple[Tensor, Tensor]:
    """:func:`make_anchors` with the last results kept on a CPU, where they take a good part of a small batch's time.

    Args:
        feats: As there.
        strides: As there.

    Returns:
        As there; not to be written to.
    """
    if not feats or not is_plain(*feats):
        return make_anchors(feats, strides)
    sizes = tuple((feat.shape[2], feat.shape[3], compute_dtype(feat)) for feat in feats)
    return _anchors_of(sizes, tuple(strides))


@lru_cache(maxsize=8)
def _anchors_of(sizes: tuple[tuple[int, int, torch.dtype], ...], strides: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    # Tensors of inference mode could not be used in a training step later.
    with torch.inference_mode(False):
        feats = [torch.empty((1, 0, height, width), dtype=dtype, device="cpu") for height, width, dtype in sizes]
        return make_anchors(feats, strides)


def decode(pred_distri: Tensor, anchor_points: Tensor, reg_max: int) -> Tensor:
    """Decode boxes from distributions over R bins per side (Li et al., arXiv 2006.04388).

    Args:
        pred_distri: (B, 4R, A) logits, side-major: left's R bins, then top, right, bottom.
        anchor_points: (A, 2) in grid units.
        reg_max: R; with 1 the four channels are the distances themselves.

    Returns:
        (B, A, 4) boxes xyxy in grid units.
    """
    return _boxes_from_distances(_expected_distances(pred_distri, reg_max), anchor_points)


def decode_levels(
    levels: Sequence[Channels], anchor_points: Tensor, reg_max: int, *, image_by_image: bool = False
) -> Tensor:
    """``decode`` for levels that are not joined.

    Args:
        levels: 4R channels of each level, of any floating dtype.
        anchor_points: (A, 2) grid units.
        reg_max: R.
        image_by_image: Whether a graph takes one image after the other, as ``map_images`` does.

    Returns:
        (B, A, 4) boxes xyxy in grid units, in the points' dtype.
    """
    dtype, views = anchor_points.dtype, [level.view() for level in levels]
    if reg_max > 1 and in_place(views):
        chunks = [[view[images] for view in views] for images in image_slices(*views)]
        distance = torch.cat([_expectation_by_exponentials(chunk, reg_max, dtype) for chunk in chunks])
        return _boxes_from_distances(distance, anchor_points)
    if image_by_image and torch.compiler.is_exporting():
        distance = map_images(
            lambda sources: _distances_of(levels, sources, reg_max, dtype), [c.source for c in levels]
        )
        return _boxes_from_distances(distance, anchor_points)
    parts = [map_chunks(view, lambda chunk: _expected_distances(chunk.to(dtype), reg_max)) for view in views]
    return _boxes_from_distances(torch.cat(parts, dim=2), anchor_points)


def _distances_of(levels: Sequence[Channels], sources: Sequence[Tensor], reg_max: int, dtype: torch.dtype) -> Tensor:
    """Expected distances (b, 4, A) of all levels, read from other sources (b, ...)."""
    views = [level._replace(source=source).view() for level, source in zip(levels, sources, strict=True)]
    return torch.cat([_expected_distances(view.to(dtype), reg_max) for view in views], dim=2)


def decode_rows(rows: Tensor, points: Tensor, reg_max: int) -> Tensor:
    """``decode`` for a list of anchors.

    Args:
        rows: (N, 4R) logits, side-major.
        points: (N, 2) grid units.
        reg_max: R.

    Returns:
        (N, 4) boxes xyxy in grid units.
    """
    if reg_max > 1:
        bins = torch.arange(reg_max, dtype=rows.dtype, device=rows.device)
        rows = (rows.unflatten(1, (4, reg_max)).softmax(dim=2) * bins).sum(dim=2)
    return dist2bbox(rows, points)


def _boxes_from_distances(distance: Tensor, anchor_points: Tensor) -> Tensor:
    """Distances (B, 4, A) to boxes (B, A, 4) xyxy, whose corners lie along the slow axis in memory."""
    points = anchor_points.t()  # (2, A)
    return torch.cat((points - distance[:, :2], points + distance[:, 2:]), dim=1).transpose(1, 2)


@kernel
def _expected_distances(pred_distri: Tensor, reg_max: int) -> Tensor:
    """Expected distances (B, 4, A) of left, top, right, bottom in grid units, from logits (B, 4R, A)."""
    if reg_max == 1:
        return pred_distri
    logits: Tensor = pred_distri.unflatten(1, (4, reg_max))  # (B, 4, R, A)
    if torch.compiler.is_exporting():
        return _expectation_by_product(logits)
    if torch.compiler.is_compiling():
        return _expectation_by_planes(logits)
    return _expectation_by_softmax(logits)


def _expectation_by_exponentials(levels: Sequence[Tensor], reg_max: int, dtype: torch.dtype) -> Tensor:
    """Expected distances (B, 4, A) of several levels, in place: without a shift and with one quotient for all bins."""
    values = exponentials(levels, dtype).unflatten(1, (4, reg_max))
    total = values.sum(dim=2)  # (B, 4, A)
    distance = torch.matmul(torch.arange(reg_max, dtype=dtype), values).div_(total)
    if _all_between(total, LEAST_SUM, LARGEST_SUM):
        return distance
    exact = (total >= LEAST_SUM) & (total <= LARGEST_SUM)
    logits = torch.cat([level.to(dtype) for level in levels], dim=2).unflatten(1, (4, reg_max))
    return torch.where(exact, distance, _expectation_by_softmax(logits))


def _all_between(values: Tensor, least: float, largest: float) -> bool:
    """Whether all values are numbers between two bounds; one pass, where comparisons take four."""
    if not values.numel():
        return True
    low, high = values.aminmax()
    return least <= float(low) and float(high) <= largest


def _expectation_by_softmax(logits: Tensor) -> Tensor:
    bins = torch.arange(logits.shape[2], dtype=logits.dtype, device=logits.device)
    # One side at a time, so that no temporary is as large as the input.
    return torch.stack([_expectation(side.softmax(dim=1), bins) for side in logits.unbind(1)], dim=1)


def _expectation(probabilities: Tensor, bins: Tensor) -> Tensor:
    if probabilities.device.type == "cpu":
        # Multiplying and summing takes ten times as long.
        return torch.matmul(bins, probabilities)
    # On a GPU with TF32 allowed, a matrix product rounds its factors to three digits.
    return (probabilities * bins[:, None]).sum(dim=1)


def _expectation_by_product(logits: Tensor) -> Tensor:
    """For export: numerator and denominator in one product. A softmax along an inner axis would be transposed."""
    exponentials = (logits - logits.amax(dim=2, keepdim=True)).exp()
    bins = torch.arange(logits.shape[2], dtype=logits.dtype, device=logits.device)
    both = torch.matmul(torch.stack((bins, torch.ones_like(bins))), exponentials)  # (B, 4, 2, A)
    return both.select(2, 0) / both.select(2, 1)


def _expectation_by_planes(logits: Tensor) -> Tensor:
    """For torch.compile: unrolled over the bins it is one pass without a reduction, twice as fast as with one."""
    planes = logits.unbind(2)  # each (B, 4, A)
    largest = reduce(torch.maximum, planes)
    exponentials = [(plane - largest).exp() for plane in planes]
    numerator = reduce(torch.add, (number * value for number, value in enumerate(exponentials)))
    return numerator / reduce(torch.add, exponentials)
