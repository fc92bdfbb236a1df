"""The terms of single anchors, a row each, and their derivatives.

The terms of a row depend on that row alone, so derivatives of sums over rows are those of each row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yolo_loss.anchors import decode_rows
from yolo_loss.terms import box_term, dfl_term, own_class_term


class Rows(NamedTuple):
    """N anchors with what they are compared with.

    Attributes:
        distri: (N, 4R) logits of the box distributions, side-major.
        own_logits: (N,) logits of the assigned classes.
        weight: (N,) soft scores.
        target_grid: (N, 4) target boxes, xyxy, grid units.
        point: (N, 2) anchor points, grid units.
    """

    distri: Tensor
    own_logits: Tensor
    weight: Tensor
    target_grid: Tensor
    point: Tensor


class RowTerms(NamedTuple):
    """Weighted terms of each row, (N,) each."""

    box: Tensor
    cls: Tensor
    dfl: Tensor


class RowDerivatives(NamedTuple):
    """Terms with their derivatives.

    Attributes:
        box: (N,) term.
        cls: (N,) term.
        dfl: (N,) term.
        box_by_distri: (N, 4R).
        dfl_by_distri: (N, 4R).
    """

    box: Tensor
    cls: Tensor
    dfl: Tensor
    box_by_distri: Tensor
    dfl_by_distri: Tensor

    @property
    def terms(self) -> RowTerms:
        """Without derivatives."""
        return RowTerms(self.box, self.cls, self.dfl)


def row_terms(rows: Rows, reg_max: int, class_loss: str) -> RowTerms:
    """The terms of each row, weighted."""
    boxes = decode_rows(rows.distri, rows.point, reg_max)
    box = box_term(boxes, rows.target_grid) * rows.weight
    dfl = dfl_term(rows.distri.unflatten(1, (4, reg_max)), rows.target_grid, rows.point) * rows.weight
    return RowTerms(box, own_class_term(rows.own_logits, rows.weight, class_loss), dfl)


def row_derivatives(rows: Rows, reg_max: int, class_loss: str) -> RowDerivatives:
    """The terms of each row and their derivatives by the row's distributions, all detached."""
    with torch.enable_grad():
        distri = rows.distri.detach().requires_grad_()
        terms = row_terms(rows._replace(distri=distri), reg_max, class_loss)
        (by_box,) = torch.autograd.grad(terms.box.sum(), distri, retain_graph=True)
        # With R = 1 the third term is a constant.
        by_dfl = torch.autograd.grad(terms.dfl.sum(), distri)[0] if reg_max > 1 else torch.zeros_like(distri)
    box, cls, dfl = (term.detach() for term in terms)
    return RowDerivatives(box, cls, dfl, by_box, by_dfl)
