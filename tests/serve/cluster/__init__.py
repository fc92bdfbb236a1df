"""Tests of the service on Ray Serve."""
