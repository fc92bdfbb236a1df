"""Sums of the loss's terms per image, over all anchors or the foreground alone, and their gradients."""
