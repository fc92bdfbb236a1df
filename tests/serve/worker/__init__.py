"""Tests of the process in which models run."""
