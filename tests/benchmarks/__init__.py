"""The benchmarks: what of them can be tested without measuring."""
