"""Assignment of anchors to ground truths: dense over all pairs, sparse over candidate pairs, or in Triton kernels."""
