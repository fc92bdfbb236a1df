"""``yolo-assigner export triton``: a model repository for Triton Inference Server."""
