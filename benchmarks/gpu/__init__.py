"""Correctness, times, memory and lower bounds on one GPU: ``python -m benchmarks.gpu``; see docs/gpu.md."""
