"""Serving exported models over HTTP: Open Inference Protocol v2, and a typed JSON API.

``yolo-assigner serve --artifacts DIR`` starts the server, :mod:`yolo_assigner.serve.client` talks to it. Neither loads
torch, unless told to run models in it.

A request comes in through ``http``, is decoded by ``wire`` or ``v1`` and computed by ``inference``, in the engine
process of ``process``; its reply goes back the same way. ``shared_memory`` reads and writes tensors in memory of the
caller; ``detection`` has the arithmetic that server and client share. ``app`` puts the parts together, ``settings``
reads what the operator wants, and ``cli`` starts the server.
"""
