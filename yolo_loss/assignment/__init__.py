"""Assignment of anchors to ground truths: dense over all pairs, or sparse over candidate pairs."""
