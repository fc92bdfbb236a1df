"""Measurements against other software. What they need beyond the project is in the requirements files beside them."""
