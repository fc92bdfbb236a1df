"""Exported models beside torch in float64."""
