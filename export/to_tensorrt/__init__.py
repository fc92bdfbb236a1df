"""Build TensorRT engines of exported models.

In this package ``library`` is the module of TensorRT or TensorRT-RTX, which have one interface; ``builder``,
``network`` and ``config`` are its objects.
"""
