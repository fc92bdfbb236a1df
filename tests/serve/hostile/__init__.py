"""Hostile requests: their generator, the judge of answers, slow callers, and the tests that use them."""
