"""Verification of exported models against torch in float64."""
