"""Runners compute a model with a library.

The rest of the server knows only the protocol :class:`yolo_assigner.serve.inference.runners.base.Runner`. The module of
a runner, and with it its library, is imported only when it is tried, so a server needs only the library it uses.
"""
