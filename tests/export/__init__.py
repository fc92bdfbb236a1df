"""Tests of the exported models and of the commands that write them."""
