"""TensorRT engines of exported models."""
