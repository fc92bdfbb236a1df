"""Tests of the examples' helpers."""
