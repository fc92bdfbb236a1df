"""The client: maps and a batch in, NamedTuples of numpy arrays out.

Needs neither torch nor the server.
"""

from yolo_assigner.serve.client.asynchronous import AsyncAssignerClient
from yolo_assigner.serve.client.client import AssignerClient
from yolo_assigner.serve.client.errors import ServerError
from yolo_assigner.serve.client.servers import RetryPolicy

__all__ = ["AssignerClient", "AsyncAssignerClient", "RetryPolicy", "ServerError"]
