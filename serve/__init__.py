"""Serving exported models over HTTP: Open Inference Protocol v2, and typed JSON for people.

``python -m serve --artifacts DIR`` starts the server, :mod:`serve.client` talks to it. Neither loads torch,
unless told to run models in it.
"""
