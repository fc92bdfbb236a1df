"""Serving exported models over HTTP: Open Inference Protocol v2, and typed JSON for people.

``yolo-assigner serve --artifacts DIR`` starts the server, :mod:`yolo_assigner.serve.client` talks to it. Neither loads
torch, unless told to run models in it.

``engine`` runs the models, ``tensors`` and ``shared`` bring arrays in and out, ``compute`` goes with them from a
request's bytes to those of its reply, and ``worker`` puts all of that into a process of its own. ``http`` is what every
request passes, ``v1`` and ``v2`` are the routes; ``app`` puts them together and ``cli`` starts it.
"""
