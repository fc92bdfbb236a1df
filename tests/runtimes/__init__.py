"""The exported models in the runtimes that people run them in; ``python -m tests.runtimes --help``."""
