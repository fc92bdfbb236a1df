"""The Triton kernels: on a CPU in Triton's interpreter, compiled for GPUs, and where they are chosen."""
