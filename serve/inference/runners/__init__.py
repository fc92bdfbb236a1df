"""What runs a model.

The rest of the server knows only the protocol :class:`yolo_assigner.serve.inference.runners.base.Runner`.

Each runner imports its library when it is chosen, so that a server needs none but the one that it uses.
"""
