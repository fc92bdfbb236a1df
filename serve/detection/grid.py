"""The anchor grid: level sizes, anchor points, and maps from flattened predictions.

The numpy twin of ``yolo_loss.anchors``: the server and the client load no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from yolo_assigner.export.contract import Contract, ContractError
from yolo_assigner.serve.detection.results import Array


def strides_of(contract: Contract) -> list[int]:
    """Pixels per cell of a model's levels.

    Raises:
        ContractError: The contract has no strides, or they are not positive integers.
    """
    strides = contract.hyperparameters.get("strides", [])
    if not strides or any(stride <= 0 or stride != int(stride) for stride in strides):
        raise ContractError(f"model {contract.name!r} has strides {strides}; export it with whole ones, as 8,16,32")
    return [int(stride) for stride in strides]


def level_sizes(image_size: tuple[int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Cells (H_i, W_i) of each level.

    Args:
        image_size: (height, width) in pixels.
        strides: Pixels per cell, one per level.

    Raises:
        ValueError: The image does not consist of whole cells.
    """
    height, width = image_size
    for stride in strides:
        if stride <= 0 or height % stride or width % stride:
            raise ValueError(
                f"imgsz {height} x {width} is not made of whole cells of stride {stride}; "
                f"use multiples of {max(strides)}, as the network does"
            )
    return [(height // stride, width // stride) for stride in strides]


def count_points(image_size: tuple[int, int], strides: Sequence[int]) -> int:
    """Count the anchor points, A, without making them.

    Args:
        image_size: (height, width) in pixels.
        strides: Pixels per cell, one per level.

    Raises:
        ValueError: The image does not consist of whole cells.
    """
    return sum(rows * columns for rows, columns in level_sizes(image_size, strides))


def anchor_points(image_size: tuple[int, int], strides: Sequence[int]) -> Array:
    """Make the anchor points of an image of whole cells, in the order of :func:`points_of`.

    Args:
        image_size: (height, width) in pixels.
        strides: Pixels per cell, one per level.

    Returns:
        (A, 2) float32, x and y in pixels.

    Raises:
        ValueError: The image does not consist of whole cells.
    """
    return points_of(level_sizes(image_size, strides), strides)


def points_of(sizes: Sequence[tuple[int, int]], strides: Sequence[float]) -> Array:
    """Make the centres of all cells, level by level, row by row, x fastest.

    Args:
        sizes: Cells (H_i, W_i) of each level.
        strides: Pixels per cell, one per level.

    Returns:
        (A, 2) float32, x and y in pixels.
    """
    levels = []
    for (rows, columns), stride in zip(sizes, strides, strict=True):
        y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        levels.append((np.stack((x, y), axis=-1).reshape(-1, 2) + 0.5) * stride)
    return np.concatenate(levels).astype(np.float32)


def maps_from_flat(
    pred_distri: Array, pred_scores: Array, image_size: tuple[int, int], strides: Sequence[int]
) -> list[Array]:
    """Make feature maps from a head's flattened output.

    Args:
        pred_distri: (B, A, 4R) logits of the box distributions.
        pred_scores: (B, A, C) class logits.
        image_size: (height, width) in pixels.
        strides: Pixels per cell, one per level.

    Returns:
        One map (B, 4R + C, H_i, W_i) per level.

    Raises:
        ValueError: The image does not consist of whole cells, or A is not their number.
    """
    points = count_points(image_size, strides)
    for name, array in (("pred_distri", pred_distri), ("pred_scores", pred_scores)):
        if array.shape[:2] != (pred_distri.shape[0], points):
            raise ValueError(
                f"{name} has shape {list(array.shape)}; an image of {image_size[0]} x {image_size[1]} has {points} "
                f"anchor points at strides {list(strides)}, so give [{pred_distri.shape[0]}, {points}, channels]"
            )
    sizes = level_sizes(image_size, strides)
    ends = np.cumsum([rows * columns for rows, columns in sizes])
    joined = np.concatenate((pred_distri, pred_scores), axis=2).transpose(0, 2, 1)  # (B, 4R + C, A)
    levels = np.split(joined, ends[:-1], axis=2)
    return [level.reshape(*level.shape[:2], *size) for level, size in zip(levels, sizes, strict=True)]
