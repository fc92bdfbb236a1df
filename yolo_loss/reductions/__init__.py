"""Sums of the losses per image, over all anchors or the foreground alone, and their gradients."""
