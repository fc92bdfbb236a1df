"""Assigning anchors to ground truths: dense over all pairs, sparse over those inside boxes, or by a GPU's kernels."""
