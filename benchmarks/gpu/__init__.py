"""Correctness, times, memory and their floor on one GPU: ``python -m benchmarks.gpu``. How and why: docs/gpu.md."""
