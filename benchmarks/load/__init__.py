"""Many clients at a real server for minutes: ``python -m benchmarks.load``."""
