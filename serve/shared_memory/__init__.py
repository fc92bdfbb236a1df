"""POSIX shared memory in which callers leave tensors."""
