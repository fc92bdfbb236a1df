"""The audit of data sets."""
