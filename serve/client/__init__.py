"""The client: maps and a batch in, NamedTuples of numpy arrays out.

Needs neither torch nor the server.
"""

from yolo_assigner.serve.client.client import AssignerClient, ServerError

__all__ = ["AssignerClient", "ServerError"]
