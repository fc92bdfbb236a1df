"""Hostile requests at a real server: ``python -m benchmarks.hostile``."""
