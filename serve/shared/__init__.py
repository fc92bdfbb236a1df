"""POSIX shared memory that callers leave tensors in."""
