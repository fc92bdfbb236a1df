"""Examples on real pictures; run from the repository's root, for example ``python -m examples.train_detector``."""
