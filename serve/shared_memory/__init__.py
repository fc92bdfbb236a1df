"""Shared memory, the system's and that of GPUs, that callers leave tensors in."""
