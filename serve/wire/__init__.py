"""Tensors between bytes and arrays, and whether they are an input of a model. Knows no HTTP."""
