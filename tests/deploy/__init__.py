"""Tests of the container image's parts."""
