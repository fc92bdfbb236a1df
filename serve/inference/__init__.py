"""Inference: the model registry, the queue before each model, dynamic batching and the runners."""
